"""What data say reaches people as text on its own line, and no name passes for the program."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from engine.log.run_log import RunLog
from engine.ranks import guard
from object_detection.check.findings import CheckFinding, Report
from object_detection.coco.findings import Counts, Finding, describe_counts
from object_detection.draw.visualize import draw_boxes
from object_detection.metrics.report import format_metrics_table
from object_detection.report import page
from outside_data.text import MOST_LINES, clean, clean_lines

FORGED = "cat\nERROR (rank 0 of 1 on node7): all weights are lost\r\x1b[2J\u202egpj.tac"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x1b]0;title\x07\x9b31m", "\\x1b]0;title\\x07\\x9b31m"),
        ("abc\u202edef\u2066\u2028", "abc\\u202edef\\u2066\\u2028"),
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "caf\\udce9.jpg"),
        ("Straße 猫 क\u094d\u200dष 👩\u200d🚀", "Straße 猫 क\u094d\u200dष 👩\u200d🚀"),
        (7, "7"),
    ],
)
def test_signs_that_a_terminal_obeys_are_escaped(text, shown):
    assert clean(text) == shown


def test_long_text_loses_its_middle():
    shown = clean("a" * 10**6 + "end")
    assert len(shown) < 260 and "(1,000,003 characters)" in shown and shown.endswith("end")
    many = clean_lines("\n" * 10**5)
    assert many.count("\n") == MOST_LINES + 1 and many.endswith("98,000 more lines")


def test_only_the_first_line_of_a_message_is_at_the_margin():
    assert clean_lines("a\r\nb\n  c\n") == "a\n    b\n  c\n"


def begins_a_line(said: str) -> bool:
    return any(line.startswith("ERROR (rank 0 of 1 on node7)") for line in said.splitlines())


@pytest.mark.parametrize("kind", [ValueError, AssertionError])
def test_a_name_cannot_forge_the_error_of_a_rank(kind, capsys):
    def fail() -> int:
        raise kind(f"category {FORGED}")

    with pytest.raises(SystemExit):
        guard.run_guarded(fail)
    said = capsys.readouterr().err
    assert "all weights are lost" in said and not begins_a_line(said)
    assert "\x1b" not in said and "\u202e" not in said


def test_no_door_lets_a_name_speak_for_the_program():
    screen = io.StringIO()
    with redirect_stdout(screen):
        RunLog().warn(f"class {FORGED}")
    counts = Counts([Finding(True, "image: empty", FORGED)])
    scores = dict.fromkeys(
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs"), 0.5
    )
    scores |= {"ARm": 0.5, "ARl": 0.5, f"AP_/{FORGED}": 0.5}
    checked = Report(
        [CheckFinding("error", "x", FORGED, FORGED, FORGED, examples=[FORGED])], {}, {}
    )
    said = (
        screen.getvalue(),
        "\n".join(describe_counts("dropped", counts.dropped, counts.examples)),
        format_metrics_table(scores),
        checked.describe(),
        page.table([FORGED], [[FORGED]]),
        page.folded("settings", FORGED),
    )
    for text in said:
        assert "all weights are lost" in text
        assert not {"\x1b", "\r", "\u202e"} & set(text)
    assert not any(map(begins_a_line, said[:4]))


def test_a_label_of_a_megabyte_is_drawn():
    image = np.zeros((64, 64, 3), np.uint8)
    box, classes = np.array([[8.0, 8.0, 40.0, 40.0]]), np.array([0])
    assert draw_boxes(image, box, classes, names=[FORGED * 20000]).shape == image.shape
