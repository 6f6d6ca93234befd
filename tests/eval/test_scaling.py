"""How selections grow: the exponent of a known law, lines that end in time, and runs that go on."""

import json

import pytest

from tokenprune.errors import PolicyError
from tokenprune.eval.speed import scaling
from tokenprune.eval.speed.data import SELECTORS
from tokenprune.eval.speed.scaling import AXES, Axis, exponent, exponents, reusable
from tokenprune.eval.speed.scaling_plot import spread

SMALL = {
    "N": Axis("N", "tokens N", ((32, 1, 32, 4), (64, 1, 64, 8))),
    "frames": Axis("frames", "frames", ((8, 1, 8 * 196, 196), (9, 1, 9 * 196, 196)), video=True),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(scaling, "AXES", SMALL)
    monkeypatch.setattr(scaling, "POLICIES", ("cdpruner",))


@pytest.fixture
def clock(monkeypatch):
    """Every call is made, and takes 1 s in its turn, then 2, and so on."""
    made = []

    def timed(call):
        made.append(call())
        return float(len(made)), 1

    monkeypatch.setattr(scaling, "timed", timed)
    return made


def run(folder, *given):
    scaling.main([*map(str, given), "--width", "8", "--limit", "1000", "--out", str(folder)])
    return json.loads((folder / "scaling.json").read_text())


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_is_found(power):
    points = [(2**i, 3e-4 * 2 ** (i * power)) for i in range(8, 15)]
    assert exponent(points[::-1]) == (power, [4096, 8192, 16384])


def test_small_sizes_have_no_say():
    """What costs 1 s whatever the size, and a millionth of the square of it: the square shows at last."""
    points = [(2**i, 1 + 1e-6 * 4**i) for i in range(4, 20)]
    assert exponent(points)[0] == pytest.approx(2, abs=1e-3)
    assert exponent(points[:6])[0] < 0.2


def test_one_size_has_no_exponent():
    assert exponent([(256, 1.0)]) is None
    assert exponent([(1, 1.0), (5, 2.0)]) is None
    assert exponent([]) is None
    rows = [{"axis": "N", "what": "dpp", "x": x, "seconds": x / 10} for x in (1, 2, 4)]
    assert exponents([*rows, {"axis": "k", "what": "dpp", "x": 4, "seconds": 1.0}]) == [
        {"axis": "N", "what": "dpp", "exponent": 1.0, "sizes": [1, 2, 4]}
    ]


def test_the_axes():
    assert [size[0] for size in AXES["N"].sizes] == [256, 512, 1024, 2048, 4096, 8192, 16384]
    assert {(n, k) for _, _, n, k in AXES["N"].sizes} >= {(256, 32), (16384, 2048)}
    assert {k for *_, k in AXES["N at few"].sizes} == {64}
    assert [units for _, units, _, _ in AXES["units"].sizes] == [1, 2, 4, 8, 16]
    assert [(x, n) for x, _, n, _ in AXES["frames"].sizes][::4] == [(8, 8 * 196), (128, 128 * 196)]


def test_the_command_writes_json_tables_and_a_plot(small, tmp_path):
    result = run(tmp_path)
    assert {(row["axis"], row["what"], row["x"]) for row in result["rows"] if row["axis"] == "N"} == {
        ("N", what, x) for what in (*SELECTORS, "cdpruner") for x in (32, 64)
    }
    videos = {row["what"] for row in result["rows"] if row["axis"] == "frames"}
    assert {"vidcom2", "dycoke", "holitom", "fastvid"} <= videos
    assert all(row["seconds"] > 0 and row["rounds"] == scaling.ROUNDS for row in result["rows"])
    assert {(one["axis"], one["what"]) for one in result["exponents"]} == {
        (row["axis"], row["what"]) for row in result["rows"]
    }
    text = (tmp_path / "scaling.md").read_text()
    assert "| tokens N | exponent | fitted on | largest | ms there |" in text
    assert "| 32 to 64 | 64 |" in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_goes_on(small, clock, tmp_path):
    first = run(tmp_path, "--axis", "N")
    count = len(clock)
    assert count == len(first["rows"]) == 2 * (len(SELECTORS) + 1)
    assert run(tmp_path, "--axis", "N") == first
    assert len(clock) == count
    whole = run(tmp_path)
    assert [row for row in whole["rows"] if row["axis"] == "N"] == first["rows"]
    assert len(clock) == len(whole["rows"]) > count
    again = run(tmp_path, "--axis", "N", "--fresh")
    assert {row["axis"] for row in again["rows"]} == {"N"}
    assert len(clock) == len(whole["rows"]) + count


def test_what_is_measured_is_kept_when_a_run_ends_early(small, clock, tmp_path, monkeypatch):
    timed = scaling.timed

    def ends(call):
        if len(clock) == 5:
            raise KeyboardInterrupt
        return timed(call)

    monkeypatch.setattr(scaling, "timed", ends)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(json.loads((tmp_path / "scaling.json").read_text())["rows"]) == 5
    monkeypatch.setattr(scaling, "timed", timed)
    assert len(run(tmp_path)["rows"]) == len(clock)


def test_what_is_there_of_later_axes_is_kept_meanwhile(small, clock, tmp_path, monkeypatch):
    whole = run(tmp_path)
    missing = [row for row in whole["rows"] if (row["axis"], row["x"]) != ("N", 64)]
    (tmp_path / "scaling.json").write_text(json.dumps({**whole, "rows": missing}))
    timed, count = scaling.timed, len(clock)

    def ends(call):
        if len(clock) == count + 1:
            raise KeyboardInterrupt
        return timed(call)

    monkeypatch.setattr(scaling, "timed", ends)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert len(rows) == len(missing) + 1
    assert all(row in rows for row in missing)


def test_other_settings_are_not_gone_on_with():
    facts = {"device": "this", "width": 8}
    rows = [{"axis": "N", "what": "dpp", "x": 1, "seconds": 1.0}]
    assert reusable({**facts, "rows": rows}, facts) == rows
    assert reusable({**facts, "width": 9, "rows": rows}, facts) == []
    assert reusable(None, facts) == []


def test_a_line_ends_where_it_could_take_too_long(small, monkeypatch):
    monkeypatch.setattr(scaling, "timed", lambda call: (2.0, 1))
    assert {row["x"] for row in scaling.rows(SMALL["N"], 8, 8.0, {})} == {32, 64}
    assert {row["x"] for row in scaling.rows(SMALL["N"], 8, 7.9, {})} == {32}


def test_a_line_ends_where_a_policy_refuses(small, monkeypatch):
    def refuses(call):
        if getattr(call.func, "__self__", None) is not None:
            raise PolicyError("too few.")
        return 1.0, 1

    monkeypatch.setattr(scaling, "timed", refuses)
    assert {row["what"] for row in scaling.rows(SMALL["N"], 8, 100, {})} == set(SELECTORS)


def test_numbers_that_would_meet_are_moved_apart():
    assert spread([0.0, 5.0, 5.0, 5.5, 9.0], 1.0) == pytest.approx([0.0, 25 / 6, 31 / 6, 37 / 6, 9.0])
    assert spread([0.0, 0.9, 1.0, 1.1], 1.0) == pytest.approx([-0.75, 0.25, 1.25, 2.25])


@pytest.mark.parametrize(
    ("given", "words"),
    [(["--axis", "M"], "invalid choice: 'M'"), (["--limit", "0"], "--limit 0 is below 1")],
)
def test_bad_options_get_a_sentence(given, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.main([*given, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
