# Makes scipy.json: /usr/bin/python3 make.py > scipy.json (Debian: python3-scipy).
# Everything here is SciPy's or a plain transcription of the definition; none of
# it is shared with the Go code.
import json

import numpy
from scipy import stats

rng = numpy.random.default_rng(20260301)
out = {}

out["binomial"] = []
for n in (10, 59, 100, 299, 300, 1000, 3000, 10000):
    for x in (0, 1, 2, 5):
        for alpha in (0.05, 0.01):
            p = 0.01
            out["binomial"].append({
                "X": x, "N": n, "Alpha": alpha, "Upper": float(stats.beta.ppf(1 - alpha, x + 1, n - x)),
                "Lower": float(stats.beta.ppf(alpha, x, n - x + 1)) if x else 0.0, "BothLower": float(stats.beta.ppf(alpha / 2, x, n - x + 1)) if x else 0.0, "BothUpper": float(stats.beta.ppf(1 - alpha / 2, x + 1, n - x)),
                "P": p, "AtMost": float(stats.binom.cdf(x, n, p))})

out["student"] = [
    {"T": t, "Freedom": v, "Above": float(stats.t.sf(t, v)), "P": p, "Critical": float(stats.t.isf(p, v))}
    for v in (1, 2, 3, 4, 5, 9, 10, 30, 58, 299, 1000, 20001)
    for t, p in ((0.1, 0.25), (1.0, 0.1), (1.96, 0.05), (3.5, 0.01), (8.0, 0.001), (-1.3, 0.2))]

out["normal"] = [{"Z": z, "Below": float(stats.norm.cdf(z))} for z in (-8, -5, -3, -1.96, -1, -0.1, 0.3, 1, 1.645, 2.5, 4, 7)]

out["mean"] = []
for n in (2, 5, 20, 200):
    for shift in (0.0, 0.002, 0.02):
        x = [float(v) for v in rng.normal(shift, 0.01, n)]
        margin, alpha = 0.01, 0.05
        below = stats.ttest_1samp(x, margin, alternative="less")
        above = stats.ttest_1samp(x, -margin, alternative="greater")
        se = stats.sem(x)
        t = stats.t.isf(alpha, n - 1)
        out["mean"].append({
            "X": x, "Margin": margin, "Alpha": alpha, "Less": float(below.pvalue), "Equivalent": float(max(below.pvalue, above.pvalue)),
            "Mean": float(numpy.mean(x)), "Error": float(se), "Lower": float(numpy.mean(x) - t * se), "Upper": float(numpy.mean(x) + t * se)})

out["mcnemar"] = []
for worse, better in ((0, 0), (1, 0), (5, 0), (6, 0), (9, 2), (10, 10), (25, 11), (3, 40), (120, 80)):
    n = worse + better
    p = float(stats.binomtest(worse, n, 0.5).pvalue) if n else 1.0
    few = min(worse, better)
    mid = min(1.0, float(2 * stats.binom.cdf(few, n, 0.5) - stats.binom.pmf(few, n, 0.5))) if n else 1.0
    out["mcnemar"].append({"Worse": worse, "Better": better, "P": p, "MidP": mid})

# BCa, from given resamples: SciPy's own steps, with its normal distribution
# and NumPy's percentiles.
out["bca"] = []
for n in (8, 30):
    x = rng.exponential(1.0, n)
    theta = float(numpy.std(x))
    boot = [float(numpy.std(rng.choice(x, n))) for _ in range(400)]
    jack = [float(numpy.std(numpy.delete(x, i))) for i in range(n)]
    alpha = 0.05
    z0 = stats.norm.ppf(numpy.mean(numpy.array(boot) < theta) + numpy.mean(numpy.array(boot) == theta) / 2)
    u = numpy.mean(jack) - numpy.array(jack)
    a = (u ** 3).sum() / (6 * (u ** 2).sum() ** 1.5)
    ends = [float(numpy.percentile(boot, 100 * stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))) for z in (stats.norm.ppf(alpha), stats.norm.ppf(1 - alpha))]
    out["bca"].append({"Estimate": theta, "Values": boot, "Without": jack, "Alpha": alpha, "Lower": ends[0], "Upper": ends[1]})

# The squared discrepancy, from its definition: means of kernel matrices
# without their diagonals.
out["mmd"] = []
for n, m, lengths in ((2, 2, (3, 4)), (5, 3, (0, 6)), (10, 10, (20, 40))):
    draw = lambda k, high: [[int(v) for v in rng.integers(0, high, rng.integers(lengths[0], lengths[1] + 1))] for _ in range(k)]
    want, got = draw(n, 3), draw(m, 4)
    longest = max(map(len, want + got))
    pad = lambda s: numpy.array(s + [-1] * (longest - len(s)))
    k = lambda a, b: float((pad(a) == pad(b)).mean())
    xx = numpy.mean([k(a, b) for i, a in enumerate(want) for j, b in enumerate(want) if i != j])
    yy = numpy.mean([k(a, b) for i, a in enumerate(got) for j, b in enumerate(got) if i != j])
    xy = numpy.mean([k(a, b) for a in want for b in got])
    out["mmd"].append({"Want": want, "Got": got, "Distance": float(xx + yy - 2 * xy)})

json.dump(out, fp=__import__("sys").stdout, indent=0)
