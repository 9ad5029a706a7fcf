# Makes scipy.json: python3 make.py > scipy.json (Debian: python3-scipy).
import json
from scipy.stats import beta, binom

rows = []
for n in (10, 59, 100, 299, 300, 1000, 3000, 10000):
    for x in (0, 1, 2, 5):
        for alpha in (0.05, 0.01):
            p = 0.01
            rows.append({"X": x, "N": n, "Alpha": alpha, "Upper": float(beta.ppf(1 - alpha, x + 1, n - x)),
                         "P": p, "AtMost": float(binom.cdf(x, n, p))})
print(json.dumps(rows, indent=0))
