# SPDX-License-Identifier: Apache-2.0
"""Draws build/bench/report.json and the samples' distributions as SVG, with gnuplot:

latency-64B.svg and latency-4KB.svg, how many exchanges took at most how long, of each variant;
ratios-one-cpu.svg and ratios-spread.svg, what counts in one picture: ratios to istio-iptables."""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys

from report import REFERENCE, VARIANTS, index, read_json, read_samples

# As bench_samples_print() in test/lib/bench_samples.h has them.
QUANTILES = [i / 100 for i in range(100)] + [0.995, 0.999, 0.9999]

# Readable also by those who do not see all colours: dashes tell the families apart.
STYLES = {
    "direct": "lc rgb '#999999' dt 1",
    "istio-iptables": "lc rgb '#000000' dt 1",
    "iptables": "lc rgb '#8c510a' dt 2",
    "nftables": "lc rgb '#d8a657' dt 4",
    "ebpf": "lc rgb '#0072b2' dt 1",
    "ebpf+proxy": "lc rgb '#56b4e9' dt 1",
    "ebpf+full": "lc rgb '#d55e00' dt 1",
    "ebpf+auto": "lc rgb '#009e73' dt 2",
    "floor-tcp": "lc rgb '#cc79a7' dt 3",
    "floor-unix": "lc rgb '#aa66cc' dt 3",
    "floor-pipe": "lc rgb '#7755aa' dt 3",
}
BARS = ("iptables", "nftables", "ebpf", "ebpf+proxy", "ebpf+full", "ebpf+auto")

# (title, highest ratio drawn, [(case, metric, label)]). One round that something else disturbed
# would otherwise make everything else flat.
RATIOS = (
    (
        "less is better",
        2,
        [
            ("pingpong-64B-c1", "p50_us", "64 B\\np50"),
            ("pingpong-64B-c1", "p99_us", "64 B\\np99"),
            ("pingpong-4KB-c1", "p50_us", "4 KB\\np50"),
            ("pingpong-64B-c16", "cpu_us_per_req", "64 B x 16\\nCPU"),
            ("connect-c1", "p50_us", "connect\\np50"),
            ("connect-c1", "p99_us", "connect\\np99"),
            ("http-c1", "p50_us", "HTTP\\np50"),
            ("http-c16", "cpu_us_per_req", "HTTP x 16\\nCPU"),
        ],
    ),
    (
        "more is better",
        5,
        [
            ("pingpong-64B-c16", "rps", "64 B x 16\\nrequests/s"),
            ("pingpong-64B-c64", "rps", "64 B x 64\\nrequests/s"),
            ("connect-c1", "conns_per_s", "connect\\nconn./s"),
            ("connect-c16", "conns_per_s", "connect x 16\\nconn./s"),
            ("bulk", "bytes_per_s", "bulk\\nbytes/s"),
            ("http-c16", "rps", "HTTP x 16\\nrequests/s"),
        ],
    ),
)


def distribution(samples, case, placement, variant):
    """The median over the rounds of each quantile; None where nothing was measured."""
    rounds = [
        sample["result"]["quantiles"]
        for sample in samples.get((case, placement, variant), {}).values()
        if "quantiles" in sample["result"]
    ]
    if not rounds:
        return None
    return [statistics.median(values) for values in zip(*rounds)]


def host_line(report):
    host = report["host"]
    return (
        f"{host['cpu']}, {host['cpus']} CPUs, Linux {host['kernel']}; "
        f"{report['rounds']} rounds; commit {report['commit'][:12]}"
    )


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def nines(quantile):
    """The vertical axis: each step upwards is a tenth of the exchanges that are left, so that the
    tail has its place."""
    return -math.log10(1 - quantile)


def latency_script(report, samples, case, label, output):
    blocks, curves = [], []
    for variant in VARIANTS:
        quantiles = distribution(samples, case, "one-cpu", variant)
        if quantiles is None:
            continue
        name = f"$d{len(blocks)}"
        points = "\n".join(f"{us} {nines(q)}" for us, q in zip(quantiles, QUANTILES))
        blocks.append(f"{name} << EOD\n{points}\nEOD")
        width = 3 if variant == REFERENCE else 2
        curves.append(f"{name} using 1:2 with lines lw {width} {STYLES[variant]} title {quoted(variant)}")
    if not curves:
        return None
    ytics = ", ".join(f'"{100 * q:g}" {nines(q):.4f}' for q in (0, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999))
    return "\n".join(
        blocks
        + [
            "set terminal svg size 1000,640 dynamic enhanced font 'sans-serif,14' background rgb 'white'",
            f"set output {quoted(output)}",
            f"set title {quoted(label + ' there and back through both sidecars, one connection, one CPU')} noenhanced",
            f"set label 1 {quoted(host_line(report))} at screen 0.99,0.015 right font ',10' noenhanced",
            "set xlabel 'microseconds'",
            "set ylabel 'exchanges that took at most as long, %'",
            "set logscale x",
            "set xrange [3:*]",
            "set xtics (3,5,10,20,30,50,100,200,500,1000,2000,5000,10000,50000)",
            f"set ytics ({ytics})",
            "set yrange [0:4]",
            "set grid xtics ytics lc rgb '#dddddd'",
            "set key outside right top noenhanced",
            "set bmargin 4.5",
            "plot " + ", \\\n".join(curves),
            "",
        ]
    )


def bar_rows(rows, placement, bars, variants):
    """A line for each group: its number, then ratio, lowest, highest of each variant."""
    lines, labels = [], []
    for case, metric, label in bars:
        cells = []
        for variant in variants:
            figure = rows.get((case, placement, variant), {}).get(metric, {})
            if figure.get("ratio"):
                cells += [figure["ratio"], figure["ratio_min"], figure["ratio_max"]]
            else:
                cells += ["NaN"] * 3
        if any(cell != "NaN" for cell in cells):
            labels.append(label)
            lines.append(" ".join(str(cell) for cell in [len(lines)] + cells))
    return lines, labels


def ratios_script(report, placement, output):
    rows = index(report)
    variants = [v for v in BARS if any(key[2] == v for key in rows)]
    width = 0.84 / max(len(variants), 1)
    script = [
        "set terminal svg size 1200,880 dynamic enhanced font 'sans-serif,13' background rgb 'white'",
        f"set output {quoted(output)}",
        "set style fill solid 0.9 noborder",
        "set grid ytics lc rgb '#dddddd'",
        "set key outside top center horizontal noenhanced",
        "set bmargin 4",
        "set ylabel 'ratio to Istio''s iptables'",
        f"set boxwidth {width * 0.92:.4f}",
        f"set label 1 {quoted(host_line(report))} at screen 0.99,0.012 right font ',10' noenhanced",
        f"set multiplot layout 2,1 title {quoted(f'{placement}: bars are medians, lines lowest to highest round')}",
    ]
    drawn = False
    for number, (title, highest, bars) in enumerate(RATIOS):
        lines, labels = bar_rows(rows, placement, bars, variants)
        if not lines:
            continue
        drawn = True
        body = "\n".join(lines)
        script.append(f"$r{number} << EOD\n{body}\nEOD")
        tics = ", ".join(f'"{label}" {i}' for i, label in enumerate(labels))
        script += [
            f"set title {quoted(title)}",
            f"set xtics ({tics}) scale 0",
            f"set xrange [-0.5:{len(labels) - 0.5}]",
            f"set yrange [0:*<{highest}]",
        ]
        plots = []
        for i, variant in enumerate(variants):
            x = f"($1+{(i - (len(variants) - 1) / 2) * width:.4f})"
            column = 2 + 3 * i
            colour = STYLES[variant].split(" dt ", maxsplit=1)[0]
            plots.append(f"$r{number} using {x}:{column} with boxes {colour} title {quoted(variant)}")
            plots.append(
                f"$r{number} using {x}:{column + 1}:(0):(${column + 2}-${column + 1}) "
                "with vectors nohead lw 1.5 lc rgb '#333333' notitle"
            )
        plots.append("1 with lines lw 1.5 lc rgb '#000000' notitle")
        script.append("plot " + ", \\\n".join(plots))
        script += ["unset label 1", "unset key"]
    script += ["unset multiplot", ""]
    return "\n".join(script) if drawn else None


def draw(script):
    done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"gnuplot: {done.stderr}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("report", "samples", "output"):
        parser.add_argument("--" + name, required=True)
    options = parser.parse_args()
    if not shutil.which("gnuplot"):
        sys.exit("no gnuplot: the plots are not drawn (make deps installs it)")
    report = read_json(options.report)
    with open(options.samples, encoding="utf-8") as file:
        samples = read_samples(file)
    pictures = {
        f"latency-{size}.svg": latency_script(
            report, samples, f"pingpong-{size}-c1", label, os.path.join(options.output, f"latency-{size}.svg")
        )
        for size, label in (("64B", "64 bytes"), ("4KB", "4 KB"))
    }
    for placement in ("one-cpu", "spread"):
        name = f"ratios-{placement}.svg"
        pictures[name] = ratios_script(report, placement, os.path.join(options.output, name))
    for script in pictures.values():
        if script:
            draw(script)


if __name__ == "__main__":
    main()
