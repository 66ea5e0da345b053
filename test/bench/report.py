# SPDX-License-Identifier: Apache-2.0
"""Turns the benchmark's samples into build/bench/report.json and a table to read.

A metric's `ratio` is the median over the rounds of its value divided by istio-iptables' value of
the same round, case and placement. `noise` says how far apart the rounds are: for each metric the
median, over all measurements, of (max - min) / median."""

import argparse
import collections
import json
import os
import platform
import statistics

REFERENCE = "istio-iptables"


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def read_samples(path):
    """{(case, placement, variant): {round: sample}}"""
    table = collections.defaultdict(dict)
    with open(path, encoding="utf-8") as file:
        for line in file:
            sample = json.loads(line)
            key = (sample["case"], sample["placement"], sample["variant"])
            table[key][sample["round"]] = sample
    return table


def figures(rounds, reference, metric):
    values = [sample["metrics"][metric] for sample in rounds.values()]
    ratios = [
        sample["metrics"][metric] / reference[number]["metrics"][metric]
        for number, sample in rounds.items()
        if number in reference and reference[number]["metrics"][metric]
    ]
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
        "ratio": round(statistics.median(ratios), 4) if ratios else None,
    }


def results(table):
    rows = []
    for (case, placement, variant), rounds in sorted(table.items()):
        reference = table.get((case, placement, REFERENCE), {})
        metrics = next(iter(rounds.values()))["metrics"]
        rows.append(
            {
                "case": case,
                "placement": placement,
                "proxy": "none" if variant == "direct" else "c",
                "variant": variant,
                "metrics": {name: figures(rounds, reference, name) for name in metrics},
                "errors": sum(sample["errors"] for sample in rounds.values()),
            }
        )
    return rows


def noise(rows):
    spreads = collections.defaultdict(list)
    for row in rows:
        for name, figure in row["metrics"].items():
            if figure["median"]:
                spreads[name].append((figure["max"] - figure["min"]) / figure["median"])
    return {name: round(statistics.median(values), 4) for name, values in spreads.items()}


def cell(figure, digits):
    """`median (min-max) ratio`, or nothing for what was not measured."""
    if not figure:
        return ""
    ratio = f" {figure['ratio']:.2f}x" if figure["ratio"] else ""
    return (
        f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f}-{figure['max']:.{digits}f})"
        + ratio
    )


def print_data_path(rows):
    print("\nThrough both sidecars: median (min-max of the rounds), and x of istio-iptables\n")
    lines = [["case", "placement", "variant", "p50 us", "p99 us", "per second", "cpu us each"]]
    for row in rows:
        metrics = row["metrics"]
        lines.append(
            [row["case"], row["placement"], row["variant"]]
            + [cell(metrics["p50_us"], 1), cell(metrics["p99_us"], 1)]
            + [cell(metrics.get("rps") or metrics.get("conns_per_s"), 0)]
            + [cell(metrics["cpu_us_per_req"], 1)]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("samples", "add", "memory", "engines", "commit", "output"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    with open(options.add, encoding="utf-8") as file:
        add = json.load(file)
    with open(options.memory, encoding="utf-8") as file:
        memory = json.load(file)
    with open(options.engines, encoding="utf-8") as file:
        engines = json.load(file)
    rows = results(read_samples(options.samples))
    report = {
        "schema": 1,
        "commit": options.commit,
        "host": {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()},
        "rounds": options.rounds,
        "noise": noise(rows),
        "results": rows,
        "registration": add | memory | {"engines": engines},
    }
    with open(options.output + ".new", "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    os.replace(options.output + ".new", options.output)
    print_registration(add, memory)
    print_engines(engines)
    print_data_path(rows)


if __name__ == "__main__":
    main()
