# SPDX-License-Identifier: Apache-2.0
"""Compares build/bench/report.json with a baseline, an earlier report, and fails on regressions.

What is compared is the ratio to istio-iptables, measured in the same run, so that neither another
machine nor another day counts. A figure is worse when its ratio is, by more than the noise of both
reports together; a report's noise for a figure is how far its rounds are apart, or what is typical
for the metric (`noise`) when that is more. Exit status 1: something is worse, failed, or is in the
baseline and not in the report; 2: they cannot be compared."""

import argparse
import sys

from report import HIGHER_IS_BETTER, REFERENCE, print_table, read_json, spread

SCHEMA = 1


def ours(row):
    """The reference, connections without sidecars and floors are what the machine is."""
    return row["variant"] not in (REFERENCE, "direct") and not row["variant"].startswith("floor-")


def by_key(report):
    return {
        (row["case"], row["placement"], row["proxy"], row["variant"]): row
        for row in report["results"]
        if ours(row)
    }


def noise_of(report, figure, metric):
    # A report from before the rounds' ratios were kept has only what is typical.
    own = spread(figure) if "ratio_min" in figure else 0
    return max(own, report["noise"].get(metric, 0))


def worse_by(metric, before, now):
    """Relative; negative when it is better."""
    return before / now - 1 if metric in HIGHER_IS_BETTER else now / before - 1


def compare(baseline, report):
    """(regressions, improvements, missing): rows to print."""
    rows = by_key(report)
    regressions, improvements, missing = [], [], []
    for key, old in by_key(baseline).items():
        new = rows.get(key, {"metrics": {}})
        for metric, before in old["metrics"].items():
            if not before.get("ratio"):
                continue
            now = new["metrics"].get(metric, {})
            if not now.get("ratio"):
                missing.append([*key, metric])
                continue
            change = worse_by(metric, before["ratio"], now["ratio"])
            allowed = noise_of(baseline, before, metric) + noise_of(report, now, metric)
            line = [*key, metric, f"{before['ratio']:.3f}", f"{now['ratio']:.3f}",
                    f"{100 * abs(change):.1f} %", f"{100 * allowed:.1f} %"]
            if change > allowed:
                regressions.append(line)
            elif -change > allowed:
                improvements.append(line)
    return regressions, improvements, missing


def failures(report):
    return [
        [row["case"], row["placement"], row["proxy"], row["variant"], str(row["errors"])]
        for row in report["results"]
        if row["errors"]
    ]


def show(title, head, lines):
    if lines:
        print(f"\n{title}\n")
        print_table([head] + lines)


def describe(name, report):
    host = report["host"]
    print(f"{name}: commit {report['commit'][:12]}, {report['rounds']} rounds, "
          f"{host['cpu']}, {host['cpus']} CPUs, Linux {host['kernel']}")


def load(path):
    try:
        report = read_json(path)
    except FileNotFoundError:
        print(f"no {path}: `make bench` writes a report, and a baseline is a copy of an earlier one",
              file=sys.stderr)
        sys.exit(2)
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        sys.exit(2)
    if report.get("schema") != SCHEMA:
        print(f"{path}: schema {report.get('schema')}, not {SCHEMA}", file=sys.stderr)
        sys.exit(2)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--report", required=True)
    options = parser.parse_args()
    baseline, report = load(options.baseline), load(options.report)
    describe("baseline", baseline)
    describe("report  ", report)
    if baseline["host"] != report["host"]:
        print("The hosts differ: ratios are compared all the same.")
    regressions, improvements, missing = compare(baseline, report)
    failed = failures(report)
    where = ["case", "placement", "proxy", "variant"]
    figures = where + ["metric", "before", "now", "change", "noise"]
    show("Better, beyond noise (ratios to istio-iptables)", figures, improvements)
    show("WORSE, beyond noise (ratios to istio-iptables)", figures, regressions)
    show("In the baseline and not in the report", where + ["metric"], missing)
    show("Failed exchanges", where + ["errors"], failed)
    print(f"\n{len(regressions)} worse, {len(improvements)} better, {len(missing)} missing, "
          f"{len(failed)} with failed exchanges")
    sys.exit(1 if regressions or missing or failed else 0)


if __name__ == "__main__":
    main()
