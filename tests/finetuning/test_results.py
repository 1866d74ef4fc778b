from pathlib import Path

import optuna

from pquant.finetuning.results import METRICS, write_results


def study_of(luts: list[int]) -> optuna.Study:
    study = optuna.create_study(study_name="a study", direction="maximize")
    for number, count in enumerate(luts, 1):
        trial = study.ask()
        trial.set_user_attr(METRICS, {"val/accuracy": 0.5, "ebops": 10.0 * number, "rtl/luts_estimated": count})
        study.tell(trial, 0.5)
    return study


def test_a_study_of_three_exports_fits_their_luts(tmp_path: Path) -> None:
    write_results(study_of([25, 45, 65]), tmp_path, ["val/accuracy"])
    page = (tmp_path / "luts.html").read_text()
    assert "LUTs (estimated) = 2 · EBOPs + 5" in page and "a study" in page and "<code>trial 2</code>" in page


def test_two_exports_are_too_few(tmp_path: Path) -> None:
    write_results(study_of([25, 45]), tmp_path, ["val/accuracy"])
    assert (tmp_path / "pareto.html").is_file() and not (tmp_path / "luts.html").exists()
