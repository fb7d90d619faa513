"""Settings: keys, types, authority of the sources, and messages that help."""

from __future__ import annotations

import dataclasses

import pytest

from engine.config import fields as config_lib
from engine.config.fields import ConfigError, Section, setting
from engine.config.recipe_yaml import literal, parse_hparams, read_yaml, source_of
from engine.config.settings import TrainConfig
from outside_data.files import BadFileError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = setting(0.1, "A rate.", flag="lr")
    count: int = setting(3, "A count.", key="num")
    name: str = setting("", "A name.")
    on: bool = setting(True, "A switch.")
    maybe: int | None = setting(None, "An optional number.")
    steps: tuple[float, ...] = setting((1.0, 2.0), "Numbers.")


@dataclasses.dataclass(frozen=True)
class Shape:
    image_size: tuple[int, int] = setting((512, 512), "Height and width.", flag=None)
    aspects: tuple[tuple[float, float], ...] = setting(((1.0, 1.0),), "Pairs.", flag=None)
    method: str = setting("gaussian", "A word.", flag=None)

    def __post_init__(self) -> None:
        if self.method not in ("gaussian", "hard"):
            raise ValueError(f"Expected gaussian or hard, got {self.method!r}.")


@dataclasses.dataclass(frozen=True)
class Whole:
    inner: Inner = dataclasses.field(default_factory=Inner)
    shape: Shape = dataclasses.field(default_factory=Shape)


def apply(text: str) -> Whole:
    return config_lib.override(Whole(), parse_hparams(text), source="--hparams")


@dataclasses.dataclass(frozen=True)
class Checked(Section):
    word: str = setting("hard", "hard: at once.", choices=("hard", "soft"))
    share: float | None = setting(0.5, "A share.", least=0, most=1)
    sizes: tuple[int, ...] = setting((2, 3), "Sizes.", least=1)


class TestWhatAFieldAllows:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"word": "sofd"}, r"word='sofd': expected one of .*; did you mean 'soft'"),
            ({"share": 1.5}, "share=1.5: expected 0 to 1"),
            ({"share": float("nan")}, "share=nan: expected 0 to 1"),
            ({"sizes": (2, 0)}, r"sizes=\(2, 0\): expected at least 1"),
        ],
    )
    def test_other_values_are_refused_when_they_are_made(self, change, message):
        with pytest.raises(ConfigError, match=message):
            Checked(**change)

    @pytest.mark.parametrize("seed", [-1, 2**31])
    def test_seeds_are_what_every_generator_takes(self, seed):
        with pytest.raises(ConfigError, match=f"seed={seed}: expected 0 to 2147483647"):
            TrainConfig(seed=seed)

    def test_what_is_allowed_passes(self):
        assert Checked(word="soft", share=None, sizes=()).sizes == ()

    def test_help_says_it(self):
        said = [field.metadata["help"] for field in dataclasses.fields(Checked)]
        assert said == [
            "hard: at once. One of hard, soft.",
            "A share. 0 to 1.",
            "Sizes. At least 1.",
        ]


class TestHparamsSyntax:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", {}),
            ("  ", {}),
            ("a=1", {"a": 1}),
            ("a=1,b.c=x*y", {"a": 1, "b.c": ["x", "y"]}),
            ("a=1*2*3", {"a": [1, 2, 3]}),
            ("a=true,b=FALSE,c=None", {"a": True, "b": False, "c": None}),
            ("a=1e-3,b=-2", {"a": 1e-3, "b": -2}),
            ("a=(1,2),b=[(1.0,2.0),(3.0,4.0)]", {"a": (1, 2), "b": [(1.0, 2.0), (3.0, 4.0)]}),
            ("a='x,y*z',b=2", {"a": "x,y*z", "b": 2}),
            ("a=k=v,b=2", {"a": "k=v", "b": 2}),
            ("a=1920x1280", {"a": "1920x1280"}),
            ("a=data/train-*", {"a": "data/train-*"}),
            ("a = 1 , b = x", {"a": 1, "b": "x"}),
            ("label_map=names.yaml", {"label_map": "names.yaml"}),
        ],
    )
    def test_forms(self, text, expected):
        assert parse_hparams(text) == expected

    @pytest.mark.parametrize("text", ["momentum", "=1", "a=1,,b=2", "a=1,b"])
    def test_other_text_is_refused(self, text):
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_hparams(text)

    def test_yaml_file(self, tmp_path):
        path = tmp_path / "more.yaml"
        path.write_text("inner:\n  count: 5\nshape.method: hard\n")
        found = apply(str(path))
        assert (found.inner.count, found.shape.method) == (5, "hard")

    def test_a_section_without_settings_changes_nothing(self, tmp_path):
        path = tmp_path / "more.yaml"
        path.write_text("inner:\n  # count: 5\nshape: {method: hard}\n")
        assert apply(str(path)) == apply("shape.method=hard")

    @pytest.mark.parametrize(
        ("text", "names"),
        [("lr=1,inner.rate=1", "lr and inner.rate"), ("count=1,num=2", "count and num")],
    )
    def test_a_setting_under_two_names_is_refused(self, text, names):
        with pytest.raises(ConfigError, match=f"--hparams: {names} are the same setting"):
            apply(text)

    def test_messages_name_the_file(self):
        assert source_of(" runs/more.yaml ") == "runs/more.yaml"
        assert source_of("inner.count=1") == source_of("label_map=names.yaml") == "--hparams"

    def test_missing_and_broken_yaml(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing.yaml"):
            parse_hparams(str(tmp_path / "nothing.yaml"))
        broken = tmp_path / "broken.yaml"
        broken.write_text("a: [1, 2\n")
        with pytest.raises(BadFileError, match="broken.yaml: not readable as YAML"):
            read_yaml(broken)
        broken.write_text("- a\n- b\n")
        with pytest.raises(BadFileError, match="expected a mapping of settings, got list"):
            read_yaml(broken)
        broken.write_text("")
        assert read_yaml(broken) == {}

    def test_literals(self):
        assert [literal(t) for t in (" 1 ", "1.5", "True", "word", "(1, 2)")] == [
            1,
            1.5,
            True,
            "word",
            (1, 2),
        ]


class TestOverride:
    def test_plain_dotted_nested_and_second_names(self):
        assert apply("count=7").inner.count == 7
        assert apply("inner.count=7").inner.count == 7
        assert apply("num=7").inner.count == 7
        assert apply("lr=0.5").inner.rate == 0.5
        nested = config_lib.override(Whole(), {"inner": {"count": 8}}, source="file")
        assert nested.inner.count == 8

    def test_the_original_is_left_alone(self):
        before = Whole()
        config_lib.override(before, {"count": 9}, source="x")
        assert before == Whole()

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [("cuont", "count"), ("inner.cuont", "inner.count"), ("metod", "method"), ("xyzzyx", None)],
    )
    def test_unknown_key_names_the_nearest(self, key, nearest):
        pattern = f"--hparams: unknown key '{key}'; did you mean '{nearest or ''}"
        with pytest.raises(ConfigError, match=pattern):
            apply(f"{key}=1")

    @pytest.mark.parametrize(
        ("text", "field", "expected"),
        [
            ("rate=1", "rate", 1.0),
            ("count=4.0", "count", 4),
            ("maybe=none", "maybe", None),
            ("maybe=3", "maybe", 3),
            ("name=None", "name", ""),
            ("steps=5", "steps", (5.0,)),
            ("steps=5*6", "steps", (5.0, 6.0)),
            ("steps=[5,6]", "steps", (5.0, 6.0)),
            ("on=false", "on", False),
        ],
    )
    def test_conversions_that_lose_nothing(self, text, field, expected):
        value = getattr(apply(text).inner, field)
        assert value == expected
        assert type(value) is type(expected)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("count=1.5", "count: expected int, got 1.5"),
            ("count=true", "count: expected int, got True"),
            ("count=many", "count: expected int, got 'many'"),
            ("count=1e999", "count: expected int, got inf"),
            ("on=1", "on: expected bool, got 1"),
            ("rate=fast", "rate: expected float, got 'fast'"),
            ("rate=None", "rate: expected float, got None"),
            ("name=3", "name: expected str, got 3"),
            ("maybe=x", "maybe: expected int, got 'x'"),
            ("image_size=1*2*3", "image_size: expected 2 values, as 512 or WIDTHxHEIGHT, got"),
            ("image_size=512x", "image_size: expected 2 values, as 512 or WIDTHxHEIGHT, got '512"),
            ("aspects=[(1.0,)]", "aspects: expected 2 values"),
            ("aspects=[0.0]", "aspects: expected 2 values"),  # no ratio
        ],
    )
    def test_wrong_types_say_what_was_expected(self, text, words):
        with pytest.raises(ConfigError, match=f"--hparams: {words}"):
            apply(text)

    @pytest.mark.parametrize(
        ("text", "height_width"),
        [
            ("image_size=640", (640, 640)),
            ("image_size=1920x1280", (1280, 1920)),
            ("image_size=(512,768)", (512, 768)),
            ("image_size=512*768", (512, 768)),
        ],
    )
    def test_sizes(self, text, height_width):
        assert apply(text).shape.image_size == height_width

    def test_values_that_a_section_refuses_name_the_source(self):
        with pytest.raises(ConfigError, match="--hparams: Expected gaussian or hard, got 'soft'"):
            apply("method=soft")

    def test_two_settings_may_not_share_a_name(self):
        @dataclasses.dataclass(frozen=True)
        class Other:
            count: int = setting(1, "Again.")

        @dataclasses.dataclass(frozen=True)
        class Clash:
            inner: Inner = dataclasses.field(default_factory=Inner)
            other: Other = dataclasses.field(default_factory=Other)

        Clash.__annotations__.update(inner=Inner, other=Other)
        with pytest.raises(ValueError, match="two settings share the name 'count'"):
            config_lib.settings(Clash)


class TestStored:
    def test_round_trip_through_plain_values(self):
        config = apply("count=9,image_size=3x4,aspects=[(1.0,2.0),(2.0,1.0)],maybe=2")
        plain = config_lib.to_dict(config)
        assert plain["shape"]["image_size"] == [4, 3]
        assert config_lib.from_dict(Whole, plain) == config

    def test_what_is_left_open_differs_only_in_settled_settings(self):
        stored = config_lib.to_dict(apply("name=x,maybe=3,steps=4,count=9,on=false"))
        for is_settled, names in ((True, "name maybe steps count on"), (False, "steps count on")):
            lines = config_lib.differences(
                apply("count=0"), stored, sections_compared=("inner",), is_settled=is_settled
            )
            assert {line.split(":")[0] for line in lines} == {f"inner.{n}" for n in names.split()}

    def test_differences(self):
        stored = config_lib.to_dict(Whole())
        changed = apply("count=9,method=hard")
        lines = config_lib.differences(changed, stored, sections_compared=("inner",))
        assert lines == ["inner.count: 3 -> 9"]
        del stored["inner"]["count"]  # a setting that is newer than the checkpoint
        assert config_lib.differences(changed, stored, sections_compared=("inner",)) == []


def test_nearest_takes_the_first_of_equals():
    assert config_lib.nearest("d", ["d0", "d1", "d2"]) == "; did you mean 'd0'?"
    assert config_lib.nearest("d", []) == ""
