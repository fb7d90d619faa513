"""The references' arguments, YAML files and named data sets on the command lines."""

import json
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from mask_records import mask_record
from test_maskrcnn_yaml import CONFIGS, SHIPPED

import families
from engine.config.fields import ConfigError, settings
from engine.optim.plan import check_settings, make_plan
from engine.start import cli
from maskrcnn.nvidia import command_line
from maskrcnn.nvidia.tf2 import RefusedTf2Arguments, Tf2Arguments
from maskrcnn.validation import validate
from object_detection.records.tfrecord_file import write_records

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "maskrcnn_arguments.md"
MAIN = str(CONFIGS / "e2e_mask_rcnn_R_50_FPN_1x.yaml")
MODEL = "--model_name=maskrcnn-r50-fpn"
# Every argument of that program's main.py, with a value.
TF2_ARGUMENTS = {
    "data_dir": "records",
    "model_dir": "run",
    "backbone_checkpoint": "rn50",
    "eval_file": "val.json",
    "epochs": "3",
    "steps_per_epoch": "10",
    "eval_samples": "20",
    "train_batch_size": "2",
    "eval_batch_size": "5",
    "seed": "7",
    "l2_weight_decay": "0.001",
    "init_learning_rate": "0.002",
    "learning_rate_values": "0.02 0.01",
    "learning_rate_boundaries": "0.5 4",
    "momentum": "0.8",
    "finetune_bn": None,
    "use_synthetic_data": None,
    "xla": None,
    "amp": None,
    "log_file": "log.json",
    "log_every": "9",
    "log_warmup_steps": "6",
    "log_graph": None,
    "log_tensorboard": "tb",
    "verbose": None,
    "eagerly": None,
}


@pytest.fixture(scope="module", autouse=True)
def defined():
    """Defines the flags of train.py in this process."""
    if "model_name" not in flags.FLAGS:
        flags.DEFINE_string("model_name", "efficientdet-d0", "Model.")
    families.define_flags(training=True)


def parsed(*argv):
    return cli.parse_flags(["train.py", *argv])[1:]


def training(*argv, num_ranks=8, preset="", **options):
    """What train.py is asked for by a command line."""
    with flagsaver.flagsaver():
        pairs = parsed(*argv)
        for name in ("recipe", "hparams"):
            options.setdefault(name, "")
        return families.training_request(pairs, preset_name=preset, num_ranks=num_ranks, **options)


def evaluation(*argv, num_ranks=1, batch_size=None):
    """What eval.py is asked for by a command line."""
    with flagsaver.flagsaver():
        return families.evaluation_request(
            parsed(*argv), preset_name="", batch_size=batch_size, num_ranks=num_ranks
        )


def spelled(name):
    value = TF2_ARGUMENTS[name]
    return [f"--{name}"] if value is None else [f"--{name}", *value.split()]


# ---------------------------------------------------------------- arguments of the TF2 program


@pytest.mark.parametrize("name", TF2_ARGUMENTS)
def test_every_argument_of_the_tf2_program_is_taken_or_refused_and_documented(name):
    row = next(
        line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `--{name}`")
    )
    if name in RefusedTf2Arguments.__dataclass_fields__:
        assert "refused" in row
        with pytest.raises(ConfigError, match=f"--{name}: Refused"):
            training(MODEL, *spelled(name))
        return
    assert ("same name" in row) == (name not in Tf2Arguments.__dataclass_fields__)
    assert training(MODEL, *spelled(name)).config != training(MODEL).config or name == "amp"


def test_a_whole_command_line_of_the_tf2_program():
    refused = RefusedTf2Arguments.__dataclass_fields__
    assert {*Tf2Arguments.__dataclass_fields__, *refused} <= set(TF2_ARGUMENTS)
    argv = [word for name in TF2_ARGUMENTS if name not in refused for word in spelled(name)]
    config = training(MODEL, *argv).config
    assert config.train.batch_size == 2 and config.train.num_epochs == 3
    assert config.train.num_examples_per_epoch == 10 * 2 * 8
    assert config.optim.learning_rate == pytest.approx(0.0025)
    assert config.optim.lr_step_factor == pytest.approx(0.5)
    assert config.optim.lr_warmup_init == pytest.approx(0.002 * 2)
    assert config.optim.lr_step_epochs == (4.0,) and config.optim.momentum == 0.8
    assert config.model.finetune_bn and config.train.debug and config.runtime.use_xla
    assert config.data.training_file_pattern == "records/train*.tfrecord"
    assert config.train.log_warmup_steps == 6 and config.train.log_filename == "log.json"


def test_the_log_says_how_the_rate_differs():
    (note,) = training(MODEL, "--epochs=2", num_ranks=1).notes
    assert "learning rate 0.005: 0.00125 per image" in note
    assert "0.04, 8 times too high on 1 rank" in note
    assert "0.04, the same on 8" in training(MODEL, preset="nvidia_tf2").notes[0]
    (note,) = training(MODEL, "--lr=0", num_ranks=2, preset="nvidia_tf2").notes
    assert "learning rate 0:" in note and "0, 4 times too high on 2 rank" in note
    assert training(MODEL).notes == ()


def test_our_flag_and_their_argument_for_the_same_setting_are_refused():
    with pytest.raises(ConfigError, match=r"train\.batch_size: given by our flag and"):
        training(MODEL, "--batch_size=2", "--train_batch_size=4")


@pytest.mark.parametrize(
    "argument", ["--epochs=3", "--train_sets=a", "--max_steps=5", "--finetune_bn"]
)
def test_efficientdet_does_not_take_them(argument):
    with pytest.raises(ConfigError, match="is for Mask R-CNN, but model_name=efficientdet-d0"):
        training(argument)


@pytest.mark.parametrize(
    ("argument", "size"),
    [
        ("--image_size=384", (384, 384)),
        ("--image_size=640x384", (384, 640)),
        ("--image_size=384,640", (384, 640)),
        (f"--image_size=320,512 {MODEL}", (320, 512)),
        (f"--image_size=320 {MODEL}", (320, 320)),
    ],
)
def test_the_networks_input_is_a_flag_of_both_families(argument, size):
    assert training(*argument.split()).config.model.image_size == size


# ---------------------------------------------------------------- YAML files and pairs


@pytest.fixture
def data(tmp_path):
    """A data folder that holds records of some of the catalog's sets."""

    def add(prefix, numbers=(0,), **options):
        path = tmp_path / f"{prefix}-00000-of-00001.tfrecord"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, [mask_record(i, **options) for i in numbers])

    for prefix in ("train", "val", "records/mine_train"):
        add(prefix)
    add("records/mine_more", numbers=(1, 2))
    (tmp_path / "catalog.yaml").write_text(
        json.dumps(
            {
                "mine_train": {"img_dir": "images_train", "ann_file": "train.json"},
                "mine_more": {"annotations": "more.json"},
                "mine_val": {"annotations": "val.json", "records": "val-*.tfrecord"},
                "mine_raw": {"images": "images_raw", "annotations": "raw.json"},
            }
        )
    )
    return tmp_path


def of_sets(data, *argv):
    return (f"--data_dir={data}", f"--data_catalog={data}/catalog.yaml", *argv)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_valid(name):
    flags_ = ("--training_file_pattern=t", "--val_file_pattern=v", "--val_json_file=j")
    ranks = 1 if "1_gpu" in name else 2
    config = training(f"--config-file={CONFIGS / name}", *flags_, num_ranks=ranks).config
    assert config.data.training_file_pattern == "t" and config.eval.val_file_pattern == "v"
    validate(config)
    check_settings(config.train, config.data, config.eval)
    assert config.model.include_mask == ("mask_rcnn" in name)
    assert config.model.rpn_only == ("rpn_R" in name)
    assert (config.model.norm == "group_norm") == ("gn" in Path(name).stem.split("_"))
    assert (config.model.box_head == "conv") == ("Xconv1fc" in name)
    assert config.model.body == ("c4" if "C4" in name else "fpn")
    if name.startswith(("e2e", "gn_baselines")):
        plan = make_plan(config.train, config.optim, num_examples=1, num_ranks=ranks)
        assert plan.learning_rate == pytest.approx(0.00125 * config.train.batch_size * ranks)


def test_precedence(data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim: {momentum: 0.5}\n")
    command = (f"--config_file={MAIN}", f"--data_dir={data}")
    pairs = ("SOLVER.BASE_LR", "0.02", "SOLVER.MOMENTUM", "0.7", "OUTPUT_DIR", "out")
    request = training(*command, *pairs)
    assert request.config.optim.learning_rate == 0.02 and request.config.optim.momentum == 0.7
    assert request.config.train.model_dir == "out" and request.config.train.batch_size == 12
    assert request.config.data.training_file_pattern == f"{data}/train-*.tfrecord"
    assert request.config.eval.val_json_file.endswith("annotations/instances_val2017.json")
    assert any("proposals are chosen for each image" in note for note in request.notes)
    assert training(*command, *pairs, recipe=str(recipe)).config.optim.momentum == 0.5
    flag = ("--momentum=0.3", "--model_dir=here", "--amp", "--max_steps=90")
    config = training(*command, *flag, *pairs, recipe=str(recipe)).config
    assert config.optim.momentum == 0.3 and config.train.model_dir == "here"
    assert config.runtime.precision == "" and config.runtime.amp
    off = training(*command, "--nofp16").config.runtime
    assert (off.precision, off.amp) == ("", False)
    steps = config.train.num_epochs * config.train.num_examples_per_epoch / 96
    assert steps == 90


def test_pairs_may_stand_between_flags_and_be_negative():
    flags_ = ("--training_file_pattern", "t", "--val-file-pattern=v", "--val_json_file=j")
    pairs = ("MODEL.RPN.STRADDLE_THRESH", "-1")
    config = training(f"--config_file={MAIN}", *pairs, *flags_, "--nouse_xla").config
    assert config.rpn.rpn_straddle_thresh == -1 and config.runtime.use_xla is False
    assert config.data.training_file_pattern == "t"


def test_what_cannot_go_together():
    with pytest.raises(ConfigError, match="leave --model_name out"):
        training("--model_name=maskrcnn-r101-fpn", f"--config_file={MAIN}")
    with pytest.raises(ConfigError, match="unexpected argument 'SOLVER.BASE_LR'"):
        training(MODEL, "SOLVER.BASE_LR", "0.02")
    with pytest.raises(ConfigError, match="--max_steps overrides SOLVER.MAX_ITER"):
        training(MODEL, "--max_steps=5")
    with pytest.raises(ConfigError, match="--local_rank: Refused"):
        training(MODEL, "--local-rank=0")


@pytest.mark.parametrize("target", ["0.377", "0.0"])
def test_evaluation_each_epoch_counts_the_sets_images(data, target):
    sets = of_sets(data, "--train_sets=mine_train,mine_more", "--test_sets=mine_val")
    pairs = ("PER_EPOCH_EVAL", "True", "SOLVER.IMS_PER_BATCH", "2", "TEST.IMS_PER_BATCH", "2")
    pairs += ("SOLVER.MAX_ITER", "8", "MIN_BBOX_MAP", target)
    config = training(f"--config_file={MAIN}", *sets, *pairs, num_ranks=2).config
    assert config.train.num_epochs == 4  # 3 images, 2 a step
    assert config.optim.lr_warmup_epoch == 400


# ---------------------------------------------------------------- data sets by name


def test_several_sets(data):
    sets = "--train_sets=mine_train,mine_more", "--test_sets=mine_val,coco_2017_val"
    request = training(MODEL, *of_sets(data, *sets))
    assert request.config.data.training_file_pattern == (
        f"{data}/records/mine_train-*.tfrecord,{data}/records/mine_more-*.tfrecord"
    )
    assert list(request.test_sets) == ["mine_val", "coco_2017_val"]
    assert request.config.eval.val_json_file == f"{data}/val.json"
    further = request.test_sets["coco_2017_val"]
    assert further["eval.val_json_file"] == f"{data}/annotations/instances_val2017.json"


def test_a_set_that_is_not_converted_gives_the_command(data):
    with pytest.raises(FileNotFoundError, match="data set mine_raw is not converted") as error:
        training(MODEL, *of_sets(data, "--train_sets=mine_raw"))
    assert (
        f"python dataset/create_coco_tfrecord.py --include_masks --image_dir={data}/images_raw "
        f"--object_annotations_file={data}/raw.json --output_file_prefix={data}/records/mine_raw "
    ) in str(error.value)
    with pytest.raises(ValueError, match="'coco_2071_train' is unknown; did you mean coco_2017_tr"):
        training(MODEL, *of_sets(data, "--train_sets=coco_2071_train"))
    with pytest.raises(FileNotFoundError, match="dataset/get_coco2014.sh"):
        training(MODEL, *of_sets(data, "--train_sets=coco_2014_train"))


def test_sets_that_are_not_tested_need_not_be_converted(data):
    sets = of_sets(data, "--train_sets=mine_train", "--test_sets=mine_raw")
    assert training(MODEL, *sets, "--skip-test").test_sets == {}
    with pytest.raises(FileNotFoundError, match="mine_raw is not converted"):
        training(MODEL, *sets)


# ---------------------------------------------------------------- eval.py


def test_evaluation_by_file(data):
    pairs = ("TEST.EXPECTED_RESULTS", "[['segm','AP',[0.34,0.01]]]", "OUTPUT_DIR", "out")
    more = ("MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "50", "MODEL.WEIGHT", "model_9.pth")
    command = (f"--config-file={MAIN}", f"--data_dir={data}")
    request = evaluation(*command, "--infer_steps=3", *pairs, *more, num_ranks=2)
    assert request.checkpoint_places() == ["out", "model_9.pth"]
    assert list(request.test_sets) == ["coco_2017_val"]
    assert request.test_sets["coco_2017_val"]["eval.eval_samples"] == 3 * 8
    assert request.config.eval.eval_batch_size == 4
    assert request.description({})["config"]["model"]["name"] == "maskrcnn-r50-fpn"
    (line,) = request.conclude({"AP": 0.1, "mask_AP": 0.36})
    assert line.startswith("PASS segm AP 0.3600: expected 0.3000 to 0.3800")
    assert request.conclude({"mask_AP": 0.4})[0].startswith("FAIL segm AP")
    assert request.conclude({"AP": 0.4})[0].endswith("not evaluated")


def test_a_checkpoint_keeps_its_network_and_takes_the_files_settings_of_testing(data):
    stored = {"config": training(f"--config_file={MAIN}", f"--data_dir={data}").description({})}
    request = evaluation(
        f"--config-file={MAIN}",
        f"--data_dir={data}",
        *("MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "50", "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM", "64"),
    )
    described = request.description({**stored["config"], "epoch": 3})
    assert described["epoch"] == 3
    assert described["config"]["test"]["test_detections_per_image"] == 50
    assert described["config"]["model"]["box_mlp_dim"] == 1024
    assert described["config"]["runtime"]["precision"] == "float32"
    request = evaluation(f"--config-file={MAIN}", f"--data_dir={data}", "--amp")
    assert request.description(stored["config"])["config"]["runtime"]["precision"] == ""
    other = evaluation(f"--config-file={CONFIGS}/e2e_mask_rcnn_R_101_FPN_1x.yaml",
                       "--val_file_pattern=v", "--val_json_file=j")  # fmt: skip
    with pytest.raises(ConfigError, match="describes maskrcnn-r101-fpn, but the checkpoint is"):
        other.description(stored["config"])


def test_tf2_arguments_of_evaluation():
    request = evaluation("--data_dir=records", "--eval_file=val.json", "--xla")
    assert request.test_sets == {
        "": {
            "eval.val_file_pattern": "records/val*.tfrecord",
            "eval.val_json_file": "val.json",
            "runtime.use_xla": True,
        }
    }
    assert evaluation().config is None


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ("[['bbox','AP',0.3]]", r"expected \[task, metric"),
        ("[['box','AP',[0.3,0.1]]]", "did you mean 'bbox'"),
        ("[['bbox','AP60',[0.3,0.1]]]", "expected one of"),
    ],
)
def test_expected_results_of_another_form(expected, message):
    with pytest.raises(ConfigError, match=message):
        evaluation(f"--config_file={MAIN}", "TEST.EXPECTED_RESULTS", expected)


def test_a_checkpoint_of_efficientdet_is_not_evaluated_with_them():
    with flagsaver.flagsaver():
        parsed("--data_dir=records")
        with pytest.raises(ConfigError, match="--data_dir is for Mask R-CNN"):
            families.refuse_references("efficientdet-d0")
        families.refuse_references("maskrcnn-r50-fpn")


def test_names_of_settings_and_arguments_do_not_collide():
    ours = {name for section in command_line._TRAINING for name in section.__dataclass_fields__}
    assert len(ours) == sum(len(s.__dataclass_fields__) for s in command_line._TRAINING)
    for config_class in families.CONFIG_CLASSES:
        assert not ours & set(settings(config_class))
