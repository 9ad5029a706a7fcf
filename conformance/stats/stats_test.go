package stats

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
)

// Upper bounds computed by SciPy; testdata/make.py makes the file.
func TestAgainstSciPy(t *testing.T) {
	raw, err := os.ReadFile("testdata/scipy.json")
	if err != nil {
		t.Fatal(err)
	}
	var table []struct {
		X, N         int
		Alpha, Upper float64
		P, AtMost    float64
	}
	if err := json.Unmarshal(raw, &table); err != nil || len(table) < 50 {
		t.Fatalf("%d rows, %v", len(table), err)
	}
	for _, r := range table {
		if got := UpperBound(r.X, r.N, r.Alpha); math.Abs(got-r.Upper) > 1e-9*r.Upper {
			t.Errorf("UpperBound(%d, %d, %v) = %.12g, SciPy has %.12g", r.X, r.N, r.Alpha, got, r.Upper)
		}
		if got := AtMost(r.X, r.N, r.P); math.Abs(got-r.AtMost) > 1e-9*math.Max(r.AtMost, 1e-12) {
			t.Errorf("AtMost(%d, %d, %v) = %.12g, SciPy has %.12g", r.X, r.N, r.P, got, r.AtMost)
		}
	}
}

// Plans (n, c) for a margin at alpha = 5 %, as acceptance sampling tables
// have them: the "rule of three" and its successors.
func TestSmallestN(t *testing.T) {
	for _, tc := range []struct {
		c      int
		margin float64
		alpha  float64
		n      int
	}{
		{0, 0.01, 0.05, 299}, {0, 0.001, 0.05, 2995}, {1, 0.01, 0.05, 473}, {2, 0.01, 0.05, 628},
		{0, 0.05, 0.05, 59}, {0, 0.10, 0.05, 29}, {0, 0.05, 0.10, 45}, {0, 0.10, 0.10, 22},
	} {
		n, err := SmallestN(tc.c, tc.margin, tc.alpha)
		if err != nil || n != tc.n {
			t.Errorf("SmallestN(%d, %v, %v) = %d, %v; want %d", tc.c, tc.margin, tc.alpha, n, err, tc.n)
		}
		if !Keeps(n, tc.c, tc.margin, tc.alpha) || Keeps(n-1, tc.c, tc.margin, tc.alpha) {
			t.Errorf("%d is not the smallest", n)
		}
	}
	for _, bad := range []float64{0, 1, -1, math.NaN()} {
		if _, err := SmallestN(0, bad, 0.05); err == nil {
			t.Errorf("a plan for margin %v", bad)
		}
	}
}

// An independent implementation agrees: the bound is a quantile of a beta
// distribution.
func TestUpperBoundIsABetaQuantile(t *testing.T) {
	for _, n := range []int{1, 10, 299, 1000} {
		for _, x := range []int{0, 1, 2, 7, 50} {
			if x >= n {
				continue
			}
			want := distuv.Beta{Alpha: float64(x + 1), Beta: float64(n - x)}.Quantile(0.95)
			if got := UpperBound(x, n, 0.05); math.Abs(got-want) > 1e-8 {
				t.Errorf("UpperBound(%d, %d) = %v, want %v", x, n, got, want)
			}
		}
	}
	if UpperBound(0, 0, 0.05) != 1 || UpperBound(5, 5, 0.05) != 1 {
		t.Error("without evidence the bound is not 1")
	}
}
