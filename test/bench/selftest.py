# SPDX-License-Identifier: Apache-2.0
"""Tests of what the benchmark makes of its samples; prints TAP. No root, no kernel, no traffic:
samples are made up. Usage: selftest.py"""

import contextlib
import copy
import io
import json
import sys
import traceback

import compare
import plot
import report

COMMON = {"commit": "0" * 40, "host": {"kernel": "6", "cpus": 2, "cpu": "none"}, "rounds": 3}


def sample(number, variant, metrics, case="pingpong-64B-c1", errors=0):
    result = {"errors": errors}
    if metrics:
        result |= {"metrics": metrics, "count": 1, "quantiles": [10.0] * len(plot.QUANTILES)}
    proxy = "none" if variant in ("direct", "floor-tcp") else "c"
    return json.dumps({"round": number, "case": case, "placement": "one-cpu", "proxy": proxy,
                       "variant": variant, "result": result})


def make(ebpf=(45, 48, 60), auto=(45, 48, 60), errors=0):
    """Three rounds in which the machine slows down; istio-iptables takes 50, 60, 80 us."""
    lines = []
    for number, base in enumerate((50, 60, 80), 1):
        for variant, p50 in (("istio-iptables", base), ("ebpf", ebpf[number - 1]),
                             ("ebpf+auto", auto[number - 1]), ("floor-tcp", 5)):
            lines.append(sample(number, variant, {"p50_us": p50, "rps": 1e6 / p50}))
    lines[0] = sample(1, "istio-iptables", {"p50_us": 50, "rps": 20000}, errors=errors)
    rows = report.results(report.read_samples(lines))
    return {"schema": 1, "noise": report.noise(rows), "results": rows} | COMMON, lines


def figure(made, variant, metric="p50_us", case="pingpong-64B-c1"):
    return report.index(made)[case, "one-cpu", variant][metric]


def test_ratio_is_the_median_of_the_rounds_ratios():
    """Not the ratio of the medians, which would be 45 / 60."""
    made, _ = make(ebpf=(45, 60, 40))
    assert figure(made, "ebpf")["median"] == 45
    assert figure(made, "ebpf")["ratio"] == 0.9
    assert (figure(made, "ebpf")["ratio_min"], figure(made, "ebpf")["ratio_max"]) == (0.5, 1.0)
    assert figure(made, "istio-iptables")["ratio"] == 1


def test_ratio_to_ebpf():
    made, _ = make(auto=(90, 96, 120))
    assert figure(made, "ebpf+auto")["ratio_to_ebpf"] == 2


def test_rows_have_what_the_schema_names():
    made, _ = make()
    for row in made["results"]:
        assert set(row) == {"case", "placement", "proxy", "variant", "metrics", "errors"}, row
        for values in row["metrics"].values():
            assert {"min", "median", "max", "ratio"} <= set(values), values


def test_noise_is_of_ratios():
    """Absolute times grow by more than a half, ratios do not: 0.9, 0.8, 0.75."""
    made, _ = make(auto=(45, 48, 60))
    assert abs(made["noise"]["p50_us"] - 0.15 / 0.8) < 0.001, made["noise"]


def test_a_failed_measurement_is_an_error_without_figures():
    _, lines = make()
    lines.append(sample(1, "nftables", None, errors=1))
    rows = report.results(report.read_samples(lines))
    row = next(row for row in rows if row["variant"] == "nftables")
    assert row["errors"] == 1 and row["metrics"] == {}


def test_a_round_that_failed_is_left_out():
    _, lines = make()
    lines = [line for line in lines if not ('"ebpf"' in line and '"round": 2' in line)]
    lines.append(sample(2, "ebpf", None, errors=1))
    rows = report.results(report.read_samples(lines))
    row = next(row for row in rows if row["variant"] == "ebpf")
    assert row["errors"] == 1
    assert row["metrics"]["p50_us"]["ratio"] == round((0.9 + 0.75) / 2, 4)


def test_targets():
    made, _ = make()
    lines = {(line[0], line[1]): line for line in report.target_lines(made)}
    assert lines["ebpf", "pingpong-64B-c1 p50"][5] == "reached"
    assert lines["ebpf+full", "pingpong-64B-c1 p50"][5] == "not measured"
    made, _ = make(ebpf=(50, 60, 80))
    lines = {(line[0], line[1]): line for line in report.target_lines(made)}
    assert lines["ebpf", "pingpong-64B-c1 p50"][5] == "missed"


def test_targets_know_what_is_better():
    assert report.reached(2.6, 2.7, True) and not report.reached(2.6, 2.5, True)
    assert report.reached(0.88, 0.87, False) and not report.reached(0.88, 0.89, False)


def test_auto_slower_beyond_noise():
    made, _ = make()
    assert not report.slower_than_plain(made)
    made, _ = make(auto=(90, 96, 120))
    assert {row[2] for row in report.slower_than_plain(made)} == {"p50_us", "rps"}


def doctored(change):
    made, _ = make()
    other = copy.deepcopy(made)
    for row in other["results"]:
        if row["variant"] == "ebpf":
            change(row)
    return compare.compare(made, other)


def scale(metric, factor):
    def change(row):
        for name in ("ratio", "ratio_min", "ratio_max"):
            row["metrics"][metric][name] *= factor
    return change


def test_equal_reports_compare_equal():
    assert doctored(lambda row: None) == ([], [], [])


def test_regression_of_a_time():
    regressions, improvements, missing = doctored(scale("p50_us", 1.5))
    assert [line[4] for line in regressions] == ["p50_us"] and not improvements and not missing


def test_regression_of_a_rate():
    regressions, improvements, _ = doctored(scale("rps", 0.6))
    assert [line[4] for line in regressions] == ["rps"] and not improvements


def test_improvement_is_no_regression():
    regressions, improvements, _ = doctored(scale("p50_us", 0.5))
    assert not regressions and [line[4] for line in improvements] == ["p50_us"]


def test_within_the_noise_of_both_is_nothing():
    """The rounds are 18.75 % apart in each report: 37.5 % are allowed."""
    assert doctored(scale("p50_us", 1.36)) == ([], [], [])
    assert doctored(scale("p50_us", 1.39))[0]


def test_what_is_gone_is_missing():
    _, _, missing = doctored(lambda row: row["metrics"].pop("p50_us"))
    assert [line[4] for line in missing] == ["p50_us"]


def test_failed_exchanges_are_told():
    made, _ = make(errors=3)
    assert [line[4] for line in compare.failures(made)] == ["3"]


def test_baseline_of_an_earlier_version():
    """Reports had no ratios of rounds at first."""
    made, _ = make()
    old = copy.deepcopy(made)
    for row in old["results"]:
        for values in row["metrics"].values():
            values.pop("ratio_min", None)
            values.pop("ratio_max", None)
    assert compare.compare(old, made) == ([], [], [])


def test_tables_print():
    made, _ = make()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        report.print_data_path(made)
        report.print_floors(made)
        report.print_targets(made)
        report.print_slower(made)
    assert "0.80" in text.getvalue() and "floor-tcp" in text.getvalue()


def test_plots_have_what_was_measured():
    made, lines = make()
    samples = report.read_samples(lines)
    script = plot.latency_script(made, samples, "pingpong-64B-c1", "64 bytes", "x.svg")
    assert "title 'ebpf+auto'" in script and "title 'nftables'" not in script
    assert plot.latency_script(made, samples, "pingpong-4KB-c1", "4 KB", "x.svg") is None
    assert "title 'ebpf'" in plot.ratios_script(made, "one-cpu", "x.svg")
    assert plot.ratios_script(made, "spread", "x.svg") is None


def main():
    tests = {name: f for name, f in globals().items() if name.startswith("test_")}
    failed = 0
    print(f"1..{len(tests)}")
    for number, (name, function) in enumerate(tests.items(), 1):
        title = "bench: " + name.removeprefix("test_").replace("_", " ")
        try:
            function()
            print(f"ok {number} - {title}")
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {title}")
            print("".join("# " + line + "\n" for line in traceback.format_exc().splitlines()), end="")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
