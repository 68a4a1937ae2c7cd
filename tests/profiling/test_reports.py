"""Reports of the compiler as a table."""

import json

import pytest

from imagen_video.profiling.reports import report_table

REPORT = {
    "stage": "ssr3",
    "program": "sample",
    "slice": "v5e:4x4",
    "rows": 1,
    "jax": "0.10.2",
    "libtpu": "0.0.42",
    "fits": True,
    "hbm_gib": 16.0,
    "compile_seconds": 216.96,
    "host_gib": 2.49,
    "missing_gib": None,
    "compiled": {
        "arguments_gib": 0.9,
        "temporaries_gib": 11.36,
        "seconds": 1.69995,
        "share_of_peak": 0.285,
        "ceiling": 0.4,
        "repeated": 1.023,
    },
}


def test_each_report_is_a_row_and_the_versions_are_named(tmp_path):
    large = REPORT | {"slice": "v5e:2x2", "fits": False, "missing_gib": 3.25, "compiled": None}
    (tmp_path / "b.json").write_text(json.dumps(REPORT))
    (tmp_path / "a.json").write_text(json.dumps(large))
    (tmp_path / "c.json").write_text(json.dumps(large | {"missing_gib": None}))
    lines = report_table(tmp_path).splitlines()
    effort = "217 s, 2.5 GiB"
    missing = "does not fit, 3.2 too many"
    assert lines[2] == f"| ssr3 | sample | v5e:2x2 | 1 | {missing} |  |  |  |  | {effort} |"
    fitting = "12.3 of 16 | 1.7 | 28% | 40% | 1.02"
    assert lines[3] == f"| ssr3 | sample | v5e:4x4 | 1 | {fitting} | {effort} |"
    assert lines[4] == f"| ssr3 | sample | v5e:2x2 | 1 | does not fit |  |  |  |  | {effort} |"
    assert {line.count("|") for line in lines[:4]} == {11}
    assert "jax 0.10.2, libtpu 0.0.42." in lines[-1]


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"stage": "ssr3", "compiled": 1}'])
def test_a_file_of_something_else_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(json.dumps(REPORT))
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ValueError, match=r"b\.json: no report of this imagen-video compile"):
        report_table(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no \*.json reports"):
        report_table(tmp_path)
