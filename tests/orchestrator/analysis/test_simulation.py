import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "statistics_simulation.py"


@pytest.fixture(scope="module")
def simulation_main():
    return runpy.run_path(str(SCRIPT))["main"]


def run_simulation(main, capsys, *arguments):
    main([*arguments, "--repeats", "150", "--items", "100", "--seeds", "3"])
    return capsys.readouterr().out


def test_the_simulation_is_seeded_and_near_its_level(simulation_main, capsys):
    out = run_simulation(simulation_main, capsys, "--json")
    assert out == run_simulation(simulation_main, capsys, "--json")
    (found,) = json.loads(out)["settings"]
    # 5 % nominal; 150 repeats leave a standard error of 1.8 points
    assert found["type_1_error"]["percent"] < 5 + 3 * 1.8
    assert found["coverage"]["percent"] > 95 - 3 * 1.8
    assert found["type_1_error"]["percent"] + found["coverage_without_difference"][
        "percent"
    ] == pytest.approx(100)


def test_it_prints_a_line_a_setting(simulation_main, capsys):
    assert "seeds 3, items 100: type_1_error" in run_simulation(simulation_main, capsys)
    with pytest.raises(SystemExit) as stopped:
        simulation_main(["--seeds", "1"])
    assert stopped.value.code == 2
