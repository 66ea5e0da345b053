# SPDX-License-Identifier: Apache-2.0
"""Turns the benchmark's samples into build/bench/report.json and tables to read.

A metric's `ratio` is the median over the rounds of its value divided by istio-iptables' value of
the same round, case and placement; `ratio_to_ebpf` is the same with ebpf (without acceleration).
`noise` is, for each metric, the typical distance between the rounds: the median over all
measurements of (highest - lowest) / median of their ratios."""

import argparse
import collections
import json
import os
import platform
import statistics

REFERENCE = "istio-iptables"
PLAIN = "ebpf"
# What acceleration is compared with beside the reference.
COMPARED = {"ratio": REFERENCE, "ratio_to_ebpf": PLAIN}

HIGHER_IS_BETTER = {"rps", "conns_per_s", "bytes_per_s"}
RATES = ("rps", "conns_per_s", "bytes_per_s")

CASES = (
    "pingpong-64B-c1",
    "pingpong-1KB-c1",
    "pingpong-4KB-c1",
    "pingpong-64B-c16",
    "pingpong-64B-c64",
    "connect-c1",
    "connect-c16",
    "bulk",
    "http-c1",
    "http-c16",
)
VARIANTS = (
    "direct",
    "istio-iptables",
    "iptables",
    "nftables",
    "ebpf",
    "ebpf+proxy",
    "ebpf+full",
    "ebpf+auto",
    "floor-tcp",
    "floor-unix",
    "floor-pipe",
)

# One CPU, C proxy: what acceleration has to reach. (variant, case, metric, ratio, limit)
TARGETS = (
    ("ebpf", "pingpong-64B-c1", "p50_us", "ratio", 0.88),
    ("ebpf", "pingpong-4KB-c1", "p50_us", "ratio", 0.80),
    ("ebpf", "pingpong-64B-c16", "cpu_us_per_req", "ratio", 0.84),
    ("ebpf", "connect-c1", "conns_per_s", "ratio", 1.15),
    ("ebpf+proxy", "pingpong-64B-c1", "p50_us", "ratio", 0.68),
    ("ebpf+proxy", "pingpong-4KB-c1", "p50_us", "ratio", 0.56),
    ("ebpf+proxy", "connect-c1", "p99_us", "ratio_to_ebpf", 1.05),
    ("ebpf+full", "pingpong-64B-c1", "p50_us", "ratio", 0.54),
    ("ebpf+full", "pingpong-4KB-c1", "p50_us", "ratio", 0.45),
    ("ebpf+full", "pingpong-64B-c16", "rps", "ratio", 2.6),
    ("ebpf+full", "pingpong-64B-c16", "cpu_us_per_req", "ratio", 0.38),
    ("ebpf+full", "bulk", "bytes_per_s", "ratio_to_ebpf", 1.0),
)


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def read_samples(lines):
    """{(case, placement, variant): {round: sample}}"""
    table = collections.defaultdict(dict)
    for line in lines:
        sample = json.loads(line)
        table[sample["case"], sample["placement"], sample["variant"]][sample["round"]] = sample
    return table


def values_of(rounds, metric):
    """{round: value} of the rounds that have it; a failed measurement has none."""
    return {
        number: sample["result"]["metrics"][metric]
        for number, sample in rounds.items()
        if metric in sample["result"].get("metrics", {})
    }


def ratios(values, reference, metric):
    base = values_of(reference, metric)
    return [value / base[number] for number, value in values.items() if base.get(number)]


def figures(rounds, metric, references):
    values = values_of(rounds, metric)
    figure = {
        "min": round(min(values.values()), 3),
        "median": round(statistics.median(values.values()), 3),
        "max": round(max(values.values()), 3),
    }
    for name, reference in references.items():
        found = ratios(values, reference, metric)
        figure[name] = round(statistics.median(found), 4) if found else None
        if found:
            figure |= {name + "_min": round(min(found), 4), name + "_max": round(max(found), 4)}
    return figure


def in_order(key):
    """In the order of the lists above; what is not in them comes last."""
    case, placement, variant = key
    return (
        placement,
        CASES.index(case) if case in CASES else len(CASES),
        VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS),
    )


def results(table):
    rows = []
    for key in sorted(table, key=in_order):
        case, placement, variant = key
        rounds = table[key]
        references = {
            name: table.get((case, placement, reference), {})
            for name, reference in COMPARED.items()
        }
        names = {
            name: None for sample in rounds.values() for name in sample["result"].get("metrics", {})
        }
        rows.append(
            {
                "case": case,
                "placement": placement,
                "proxy": next(iter(rounds.values()))["proxy"],
                "variant": variant,
                "metrics": {name: figures(rounds, name, references) for name in names},
                "errors": sum(sample["result"]["errors"] for sample in rounds.values()),
            }
        )
    return rows


def spread(figure, name="ratio"):
    """How far the rounds are apart, relative to the median; None where there is no ratio."""
    if not figure.get(name):
        return None
    return (figure[name + "_max"] - figure[name + "_min"]) / figure[name]


def noise(rows):
    spreads = collections.defaultdict(list)
    for row in rows:
        for name, figure in row["metrics"].items():
            if row["variant"] != REFERENCE and spread(figure) is not None:
                spreads[name].append(spread(figure))
    return {name: round(statistics.median(values), 4) for name, values in spreads.items()}


# ---- tables ------------------------------------------------------------------------------------


def print_table(lines):
    """The first line is the head; columns after the first two are right-aligned."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        ]
        print("  ".join(cells).rstrip())


def amount(metric, value):
    if metric == "bytes_per_s":
        return f"{value / 1e9:.2f} GB/s"
    if metric in RATES:
        return f"{value:.0f}/s"
    return f"{value:.1f} us"


METRIC_NAMES = {"cpu_us_per_req": "cpu", "rps": "rate", "conns_per_s": "rate", "bytes_per_s": "rate"}


def metric_name(metric):
    return METRIC_NAMES.get(metric, metric.removesuffix("_us"))


def index(report):
    return {
        (row["case"], row["placement"], row["variant"]): row["metrics"] for row in report["results"]
    }


def print_data_path(report):
    rows = index(report)
    present = [v for v in VARIANTS if any(v == key[2] for key in rows)]
    placements = list(dict.fromkeys(row["placement"] for row in report["results"]))
    compared = [v for v in present if v != REFERENCE and not v.startswith("floor-")]
    for placement in placements:
        print(
            f"\nThrough both sidecars, {placement}: {REFERENCE}, and the others' ratio to it\n"
            "(p50, p90, p99, p999: time of an exchange; cpu: of the whole machine, for one; bulk: for 1 MiB)\n"
        )
        lines = [["case", "", REFERENCE] + compared]
        for case in CASES:
            reference = rows.get((case, placement, REFERENCE), {})
            for number, (metric, figure) in enumerate(reference.items()):
                ratio = [
                    rows.get((case, placement, v), {}).get(metric, {}).get("ratio")
                    for v in compared
                ]
                lines.append(
                    ["" if number else case, metric_name(metric), amount(metric, figure["median"])]
                    + ["" if r is None else f"{r:.2f}" for r in ratio]
                )
        print_table(lines)


def print_floors(report):
    rows = index(report)
    floors = [v for v in VARIANTS if v.startswith("floor-")]
    lines = [["case", "placement", "one way", "three of them", "direct", "ebpf+full", "ebpf"]]
    for (case, placement, variant), metrics in rows.items():
        if variant not in floors or "p50_us" not in metrics:
            continue
        p50 = metrics["p50_us"]["median"]
        others = [
            rows.get((case, placement, v), {}).get("p50_us", {}).get("median")
            for v in ("direct", "ebpf+full", "ebpf")
        ]
        lines.append(
            [f"{case} {variant}", placement, f"{p50:.1f}", f"{3 * p50:.1f}"]
            + ["" if other is None else f"{other:.1f}" for other in others]
        )
    if len(lines) > 1:
        print("\nFloors: p50 in us of two processes with nothing between them; a connection has three hops\n")
        print_table(lines)


def reached(limit, value, higher):
    return value >= limit if higher else value <= limit


def target_lines(report):
    rows = index(report)
    lines = []
    for variant, case, metric, name, limit in TARGETS:
        figure = rows.get((case, "one-cpu", variant), {}).get(metric, {})
        higher = metric in HIGHER_IS_BETTER
        value = figure.get(name)
        lines.append(
            [
                variant,
                f"{case} {metric_name(metric)}",
                ("at least" if higher else "at most") + f" {limit:.2f}",
                "" if value is None else f"{value:.3f}",
                "" if value is None else f"{figure[name + '_min']:.3f}-{figure[name + '_max']:.3f}",
                "not measured" if value is None else "reached" if reached(limit, value, higher) else "missed",
                "of " + COMPARED[name],
            ]
        )
    return lines


def print_targets(report):
    print("\nTargets, one CPU, C proxy: the median of the rounds, and the rounds\n")
    print_table([["variant", "what", "target", "ratio", "rounds", "", ""]] + target_lines(report))


def slower_than_plain(report, variant="ebpf+auto"):
    """What is worse with acceleration than without, by more than the rounds differ."""
    found = []
    for row in report["results"]:
        if row["variant"] != variant:
            continue
        for metric, figure in row["metrics"].items():
            ratio = figure.get("ratio_to_ebpf")
            if not ratio:
                continue
            worse = 1 / ratio - 1 if metric in HIGHER_IS_BETTER else ratio - 1
            allowed = max(spread(figure, "ratio_to_ebpf"), report["noise"].get(metric, 0))
            if worse > allowed:
                found.append((row["case"], row["placement"], metric, ratio, allowed))
    return found


def print_slower(report):
    if not any(row["variant"] == "ebpf+auto" for row in report["results"]):
        return
    found = slower_than_plain(report)
    print(f"\nWith `auto` slower than without acceleration, beyond noise: {'none' if not found else ''}")
    for case, placement, metric, ratio, allowed in found:
        print(f"  {case} {placement} {metric_name(metric)}: {ratio:.3f}, noise {allowed:.3f}")


def print_levels(report):
    """A kernel on which the probe allows nothing gives figures too: those of plain redirection."""
    if report["accelerate"]:
        print("\nWhat the accelerators were allowed\n")
    for variant, state in report["accelerate"].items():
        print(f"  {variant:12}{state.get('level', '?'):8}{state.get('reason') or ''}")


def print_noise(report):
    print("\nNoise, typical distance of the rounds' ratios: " + ", ".join(
        f"{metric} {value * 100:.1f} %" for metric, value in report["noise"].items()))
    print(f"The machine itself: {report['idle']['busy_us_per_s'] / 1e4:.2f} % of one CPU, "
          f"by {report['cpu_clock']}")


def print_engines(engines):
    print("\nRegistering a pod with each engine, in turn (p50, p99, ms)\n")
    for name, times in engines.items():
        add, removal = times["agent_add_ms"], times["agent_del_ms"]
        print(f"  {name:10} add {add['median']:8.2f} {add['p99']:8.2f}    "
              f"del {removal['median']:8.2f} {removal['p99']:8.2f}    n={add['n']}")


def print_registration(add, memory):
    print("\nRegistering a pod (median, min-max)\n")
    for label, figure in (
        ("ADD of bridge + host-local", add["chain_ms"]),
        ("the same with sockmesh-cni chained", add["chain_with_sockmesh_ms"]),
        ("growth, of interleaved pairs", add["growth_ms"]),
        ("sockmesh-cni alone, fork to exit", add["sockmesh_add_ms"]),
        ("the agent's part of an ADD", memory["agent_add_ms"]),
        ("the agent's part of a DEL", memory["agent_del_ms"]),
    ):
        print(f"  {label:38}{figure['median']:9.2f} ms  ({figure['min']:.2f}-{figure['max']:.2f}, "
              f"n={figure['n']})")
    print("\nThe agent's memory\n")
    for point in memory["memory"]:
        print(f"  {point['pods']:5} pods{'':4}RSS {point['rss_kb']:7} KB   of it private "
              f"{point['private_kb']:7} KB   {point.get('after', '')}")


def print_report(report):
    print_registration(report["registration"], report["registration"])
    print_engines(report["registration"]["engines"])
    print_data_path(report)
    print_floors(report)
    print_targets(report)
    print_slower(report)
    print_levels(report)
    print_noise(report)
    errors = sum(row["errors"] for row in report["results"])
    print(f"\nFailed exchanges: {errors}\n")


# ---- the file ----------------------------------------------------------------------------------


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_accelerate(directory):
    """{variant: what its agent said}"""
    found = {}
    for variant in VARIANTS:
        path = os.path.join(directory, f"accelerate-{variant.removeprefix('ebpf+')}.json")
        if "+" in variant and os.path.exists(path) and os.path.getsize(path):
            state = read_json(path).get("accelerate", {})
            found[variant] = {k: state.get(k) for k in ("policy", "level", "reason")}
    return found


def write_report(report, path):
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    os.replace(path + ".new", path)


def make_report(samples, options):
    rows = results(samples)
    return {
        "schema": 1,
        "commit": options.commit,
        "host": {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()},
        "rounds": options.rounds,
        "milliseconds": options.milliseconds,
        "cpu_clock": options.cpu_clock,
        "noise": noise(rows),
        "idle": read_json(options.idle),
        "accelerate": read_accelerate(options.accelerate),
        "results": rows,
        "registration": read_json(options.add)
        | read_json(options.memory)
        | {"engines": read_json(options.engines)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("samples", "add", "memory", "engines", "idle", "commit", "accelerate", "cpu-clock",
                 "output"):
        parser.add_argument("--" + name, required=True)
    for name in ("rounds", "milliseconds"):
        parser.add_argument("--" + name, type=int, required=True)
    options = parser.parse_args()
    with open(options.samples, encoding="utf-8") as file:
        report = make_report(read_samples(file), options)
    write_report(report, options.output)
    print_report(report)


if __name__ == "__main__":
    main()
