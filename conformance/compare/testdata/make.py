# Makes scipy.json: /usr/bin/python3 make.py > scipy.json (Debian: python3-scipy).
# Everything here is SciPy's, NumPy's or a plain transcription of the definition;
# none of it is shared with the Go code.
import json

import numpy
from scipy.spatial import distance
from scipy.stats import entropy

rng = numpy.random.default_rng(20261125)
out = {}


def floats(x):
    return [float(v) for v in x]


# Two distributions: near each other, far from each other, with classes that one
# or both exclude, and over many classes.
out["distributions"] = []
pairs = [([0.5, 0.5], [0.9, 0.1]), ([1.0, 0.0], [0.75, 0.25]), ([0.25, 0.0, 0.75], [0.5, 0.0, 0.5]), ([0.2, 0.8], [0.2, 0.8]), ([1.0, 0.0], [0.0, 1.0]), ([0.5, 0.5], [1.0, 0.0])]
for n, alpha in ((2, 1.0), (3, 0.3), (10, 5.0), (10, 0.05), (100, 1.0)):
    p = rng.dirichlet(numpy.full(n, alpha))
    q = rng.dirichlet(numpy.full(n, alpha))
    pairs += [(p, q), (p, 0.999 * p + 0.001 * q)]
for p, q in pairs:
    p, q = numpy.asarray(p), numpy.asarray(q)
    kl = entropy(p, q)
    out["distributions"].append({
        "P": floats(p), "Q": floats(q),
        "KL": float(kl) if numpy.isfinite(kl) else "inf",
        "JS": float(distance.jensenshannon(p, q) ** 2),
        "Hellinger": float(numpy.linalg.norm(numpy.sqrt(p) - numpy.sqrt(q)) / numpy.sqrt(2)),
        "Variation": float(distance.cityblock(p, q) / 2)})

# Two tensors of a type that NumPy has: the distance in units in the last place is
# counted with nextafter, one step at a time; the sums are of float64.
out["tensors"] = []
for name, dtype in (("FP16", numpy.float16), ("FP32", numpy.float32), ("FP64", numpy.float64)):
    for steps in (0, 1, 3, 40):
        want = rng.normal(0, 1, 50).astype(dtype)
        want[:4] = [0, 1, -1, numpy.finfo(dtype).tiny]  # across zero, a power of two, and the smallest normal number
        got = want.copy()
        for i in range(len(want)):
            towards = dtype(numpy.inf if rng.integers(2) else -numpy.inf)
            for _ in range(steps if i == 0 else rng.integers(steps + 1)):
                got[i] = numpy.nextafter(got[i], towards)
        w, g = want.astype(numpy.float64), got.astype(numpy.float64)
        error = numpy.sum((g - w) ** 2)
        out["tensors"].append({
            "Datatype": name, "Want": want.tobytes().hex(), "Got": got.tobytes().hex(), "ULP": steps,
            "Cosine": float(1 - distance.cosine(w, g)),
            "SNR": float(10 * numpy.log10(numpy.sum(w ** 2) / error)) if error else "inf"})

# bfloat16 is the upper half of float32, and NumPy has none: steps of the upper half.
for steps in (1, 5):
    want = (rng.normal(0, 1, 50).astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
    got = want.copy()
    got[7] += steps  # away from zero
    w, g = ((x.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64) for x in (want, got))
    out["tensors"].append({
        "Datatype": "BF16", "Want": want.tobytes().hex(), "Got": got.tobytes().hex(), "ULP": steps,
        "Cosine": float(1 - distance.cosine(w, g)), "SNR": float(10 * numpy.log10(numpy.sum(w ** 2) / numpy.sum((g - w) ** 2)))})

# Vectors that are embeddings.
out["vectors"] = []
for n, noise in ((3, 1.0), (64, 1e-3), (768, 0.1)):
    a = rng.normal(0, 1, n)
    b = 1.7 * a + rng.normal(0, noise, n)
    out["vectors"].append({"A": floats(a), "B": floats(b), "Cosine": float(1 - distance.cosine(a, b)), "Norm": float(numpy.linalg.norm(b) / numpy.linalg.norm(a))})

# The greatest of a list, of equals the first first: a stable sort of the negated.
out["greatest"] = []
for n in (2, 5, 40):
    x = rng.integers(0, n, n) / 4.0
    for k in (1, n // 2, n):
        order = numpy.argsort(-x, kind="stable")
        out["greatest"].append({"X": floats(x), "K": k, "Order": [int(i) for i in order[:k]], "Margin": float(x[order[k - 1]] - x[order[k]]) if k < n else "inf"})

print(json.dumps(out, indent=1))
