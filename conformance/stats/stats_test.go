package stats

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
	"pgregory.net/rapid"
)

func soak() bool { return os.Getenv("ASSAY_SOAK") != "" }

// near reports whether two numbers agree to 9 significant digits, or are both
// next to nothing.
func near(got, want float64) bool { return math.Abs(got-want) <= 1e-9*math.Abs(want)+1e-15 }

// Values computed by SciPy; testdata/make.py makes the file.
func TestAgainstSciPy(t *testing.T) {
	raw, err := os.ReadFile("testdata/scipy.json")
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		Binomial []struct {
			X, N                 int
			Alpha, Upper, Lower  float64
			BothLower, BothUpper float64
			P, AtMost            float64
		}
		Student []struct {
			T, Above, P, Critical float64
			Freedom               int
		}
		Normal []struct{ Z, Below float64 }
		Mean   []struct {
			X                                                          []float64
			Margin, Alpha, Less, Equivalent, Mean, Error, Lower, Upper float64
		}
		McNemar []struct {
			Worse, Better int
			P, MidP       float64
		}
		BCa []struct {
			Estimate, Alpha, Lower, Upper float64
			Values, Without               []float64
		}
		MMD []struct {
			Want, Got [][]int32
			Distance  float64
		}
	}
	if err := json.Unmarshal(raw, &table); err != nil {
		t.Fatal(err)
	}
	check := func(what string, got, want float64, of ...any) {
		t.Helper()
		if !near(got, want) {
			t.Errorf("%s%v is %.12g, SciPy has %.12g", what, of, got, want)
		}
	}
	for _, r := range table.Binomial {
		check("UpperBound", UpperBound(r.X, r.N, r.Alpha), r.Upper, r.X, r.N, r.Alpha)
		check("LowerBound", LowerBound(r.X, r.N, r.Alpha), r.Lower, r.X, r.N, r.Alpha)
		lower, upper := Interval(r.X, r.N, r.Alpha)
		check("Interval, lower", lower, r.BothLower, r.X, r.N, r.Alpha)
		check("Interval, upper", upper, r.BothUpper, r.X, r.N, r.Alpha)
		check("AtMost", AtMost(r.X, r.N, r.P), r.AtMost, r.X, r.N, r.P)
	}
	for _, r := range table.Student {
		check("Above", Above(r.T, r.Freedom), r.Above, r.T, r.Freedom)
		// SciPy searches its quantiles with a coarser tolerance than ours.
		c := Critical(r.P, r.Freedom)
		check("Above(Critical)", Above(c, r.Freedom), r.P, r.P, r.Freedom)
		if math.Abs(c-r.Critical) > 1e-7*c {
			t.Errorf("Critical(%v, %d) is %.12g, SciPy has %.12g", r.P, r.Freedom, c, r.Critical)
		}
	}
	for _, r := range table.Normal {
		check("normal", normal(r.Z), r.Below, r.Z)
		if z := normalQuantile(r.Below); math.Abs(z-r.Z) > 1e-8 && math.Abs(r.Z) < 5 {
			t.Errorf("normalQuantile(%v) = %v, want %v", r.Below, z, r.Z)
		}
	}
	for i, r := range table.Mean {
		e, err := Equivalence(r.X, r.Margin, r.Alpha, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		check("mean", e.Mean, r.Mean, i)
		check("its error", e.StandardError, r.Error, i)
		if far := 1e-7 * (r.Upper - r.Lower); math.Abs(e.Lower-r.Lower) > far || math.Abs(e.Upper-r.Upper) > far {
			t.Errorf("%d: interval [%.12g, %.12g], SciPy has [%.12g, %.12g]", i, e.Lower, e.Upper, r.Lower, r.Upper)
		}
		check("p of equivalence", e.P, r.Equivalent, i)
		n, err := NonInferiority(r.X, r.Margin, r.Alpha, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		check("p of non-inferiority", n.P, r.Less, i)
		check("p of the contrary", n.Beyond, 1-r.Less, i)
		if e.Passed != (e.Lower > -r.Margin && e.Upper < r.Margin) {
			t.Errorf("%d: passed %v, and the interval is [%v, %v]", i, e.Passed, e.Lower, e.Upper)
		}
	}
	for _, r := range table.McNemar {
		m, err := McNemar(r.Worse, r.Better, 1000, 0.05, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		check("McNemar", m.P, r.P, r.Worse, r.Better)
		check("McNemar, mid-p", m.MidP, r.MidP, r.Worse, r.Better)
	}
	for i, r := range table.BCa {
		lower, upper, err := accelerated(r.Estimate, r.Values, r.Without, r.Alpha)
		if err != nil {
			t.Fatal(err)
		}
		check("BCa, lower", lower, r.Lower, i)
		check("BCa, upper", upper, r.Upper, i)
	}
	for i, r := range table.MMD {
		m, err := MMD([]Samples{{r.Want, r.Got}}, 19, NewGenerator("test"))
		if err != nil {
			t.Fatal(err)
		}
		check("MMD", m.Distance, r.Distance, i)
	}
	if len(table.Binomial) < 50 || len(table.Student) < 50 || len(table.Mean) < 10 || len(table.BCa) < 2 || len(table.MMD) < 3 || len(table.McNemar) < 5 || len(table.Normal) < 10 {
		t.Error("rows are missing")
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

// A plan keeps both of its promises, and the next smaller one breaks one.
func TestSmallestPlan(t *testing.T) {
	for _, tc := range []struct {
		benign, margin, alpha, beta float64
		c                           int
	}{{0.001, 0.01, 0.05, 0.05, 2}, {0.001, 0.01, 0.01, 0.01, 4}, {0.001, 0.005, 0.05, 0.05, 4}, {0.0001, 0.001, 0.05, 0.05, 2}, {0, 0.01, 0.05, 0.2, 0}} {
		n, c, err := SmallestPlan(tc.benign, tc.margin, tc.alpha, tc.beta)
		if err != nil || c != tc.c {
			t.Errorf("%+v: (%d, %d), %v", tc, n, c, err)
			continue
		}
		if AtMost(c, n, tc.margin) > tc.alpha || AtMost(c, n, tc.benign) < 1-tc.beta {
			t.Errorf("%+v: (%d, %d) breaks its promise", tc, n, c)
		}
		if c > 0 {
			if less, _ := SmallestN(c-1, tc.margin, tc.alpha); AtMost(c-1, less, tc.benign) >= 1-tc.beta {
				t.Errorf("%+v: %d allowed would do", tc, c-1)
			}
		}
		p := BinomialPlan(n, c, tc.margin, tc.alpha, tc.beta)
		if pass := AtMost(c, n, p.Unseen); math.Abs(pass-tc.beta) > 1e-9 || !strings.Contains(p.String(), "could have gone unseen") {
			t.Errorf("%s: passes with probability %v", p, pass)
		}
	}
	if _, _, err := SmallestPlan(0.01, 0.01, 0.05, 0.2); err == nil {
		t.Error("a plan that tells a rate from itself")
	}
	if _, _, err := SmallestPlan(0.0099, 0.01, 0.05, 0.2); err == nil {
		t.Error("a plan for two rates that are nearly the same")
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
	if UpperBound(0, 0, 0.05) != 1 || UpperBound(5, 5, 0.05) != 1 || LowerBound(0, 0, 0.05) != 0 || LowerBound(0, 5, 0.05) != 0 {
		t.Error("without evidence the bounds are not 0 and 1")
	}
	if RateP(0, 0, 0.01) != 1 || RateP(5, 5, 0.01) != 1 {
		t.Error("without evidence there is some")
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		x := rapid.IntRange(0, n).Draw(t, "x")
		// One kind of event is the other kind's absence.
		if lower, upper := LowerBound(x, n, 0.05), UpperBound(n-x, n, 0.05); !near(lower, 1-upper) && x > 0 {
			t.Errorf("lower bound of %d in %d is %v, upper bound of the others %v", x, n, lower, upper)
		}
	})
}

// What cannot be tested is an error or not a pass, never a pass.
func TestNothingPassesWithoutEvidence(t *testing.T) {
	for name, x := range map[string][]float64{
		"no cases": nil, "one case": {0}, "NaN": {0, math.NaN(), 0}, "Inf": {0, math.Inf(1)}, "overflow": {math.MaxFloat64, math.MaxFloat64},
	} {
		if m, err := Equivalence(x, 1, 0.05, 0.2); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
	for _, margin := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		if m, err := NonInferiority([]float64{0, 0, 0}, margin, 0.05, 0.2); err == nil {
			t.Errorf("margin %v: %+v", margin, m)
		}
	}
	if _, err := Equivalence([]float64{0, 0}, 1, 0.9, 0.2); err == nil {
		t.Error("alpha 0.9")
	}
	// Identical differences of a deterministic pair: known, on either side.
	if m, err := Equivalence([]float64{0.5, 0.5, 0.5}, 1, 0.05, 0.2); err != nil || !m.Passed || m.P != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, at := range []float64{1, -1, 2, -2} {
		if m, err := Equivalence([]float64{at, at, at}, 1, 0.05, 0.2); err != nil || m.Passed {
			t.Errorf("at %v: %+v, %v", at, m, err)
		}
	}
	good := [][]int32{{1, 2}, {1, 3}}
	for name, s := range map[string][]Samples{
		"no prompts": nil, "no answers": {{}}, "one answer": {{good, good[:1]}}, "a negative symbol": {{good, [][]int32{{-1}, {1}}}},
	} {
		if m, err := MMD(s, 99, NewGenerator("x")); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if _, err := MMD([]Samples{{good, good}}, 3, NewGenerator("x")); err == nil {
		t.Error("3 permutations")
	}
	if m, err := MMD([]Samples{{[][]int32{{}, {}}, [][]int32{{}, {}}}}, 19, NewGenerator("x")); err != nil || m.Distance != 0 || m.P != 1 {
		t.Errorf("empty answers: %+v, %v", m, err)
	}
	if _, err := McNemar(3, 3, 5, 0.05, 0.2); err == nil {
		t.Error("more changes than pairs")
	}
	if _, err := McNemar(0, 0, 0, 0.05, 0.2); err == nil {
		t.Error("no pairs")
	}
	if m, err := McNemar(2, 0, 100, 0.05, 0.2); err != nil || m.Unseen != 0.02 {
		t.Errorf("two changes can show nothing, so both could have gone unseen: %+v, %v", m, err)
	}
	for name, f := range map[string]func([]int) float64{
		"NaN": func([]int) float64 { return math.NaN() }, "outside": outside(),
	} {
		if b, err := Bootstrap(10, 100, 0.05, NewGenerator("x"), f); err == nil {
			t.Errorf("bootstrap of %s: %+v", name, b)
		}
	}
	if _, err := Bootstrap(1, 100, 0.05, NewGenerator("x"), func([]int) float64 { return 1 }); err == nil {
		t.Error("bootstrap of one case")
	}
	if b, err := Bootstrap(10, 100, 0.05, NewGenerator("x"), func([]int) float64 { return 1 }); err != nil || b.Lower != 1 || b.Upper != 1 {
		t.Errorf("bootstrap of a constant: %+v, %v", b, err)
	}
	if DiffersFromAll(nil) != 0 || EquivalentToOne(nil) != 1 {
		t.Error("with no accepted precision, something is accepted")
	}
	for name, gates := range map[string][]Gate{"empty": {{Name: "numerics"}}, "NaN": {{"numerics", []Hypothesis{{"x", math.NaN()}}}}} {
		if out, err := FixedSequence(gates, 0.05); err == nil && out[0].Passed {
			t.Errorf("%s gate passed", name)
		}
	}
}

// Every case is drawn, those at the ends too.
func TestBootstrapDrawsEveryCase(t *testing.T) {
	counts := make([]int, 5)
	resamples := 0
	_, err := Bootstrap(5, 1000, 0.05, NewGenerator("draws"), func(drawn []int) float64 {
		if resamples++; resamples > 1+5 { // after the cases as they are, and the jackknife
			for _, i := range drawn {
				counts[i]++
			}
		}
		return float64(drawn[0])
	})
	for i, n := range counts {
		if n < 850 || n > 1150 || err != nil {
			t.Errorf("case %d was drawn %d times in 5000, %v", i, n, err)
		}
	}
}

// outside is a statistic whose value for all cases lies below every resample.
func outside() func([]int) float64 {
	calls := 0
	return func([]int) float64 { calls++; return float64(min(calls, 2)) }
}

func TestHolm(t *testing.T) {
	got := Holm([]float64{0.01, 0.04, 0.03, 0.005})
	for i, want := range []float64{0.03, 0.06, 0.06, 0.02} { // p.adjust(c(.01,.04,.03,.005), "holm") of R
		if !near(got[i], want) {
			t.Errorf("%v", got)
		}
	}
	out, err := FixedSequence([]Gate{
		{"numerics", []Hypothesis{{"a", 0.01}, {"b", 0.02}}}, {"decisions", []Hypothesis{{"c", 0.03}, {"d", 0.04}}}, {"latency", []Hypothesis{{"e", 0}}},
	}, 0.05)
	if err != nil || !out[0].Passed || !out[1].Tested || out[1].Passed || out[2].Tested || out[2].Passed {
		t.Errorf("%+v, %v", out, err)
	}
	if DiffersFromAll([]float64{0.001, 0.4}) != 0.4 || EquivalentToOne([]float64{0.01, 0.6}) != 0.02 {
		t.Error("composite")
	}
}

// The generator is the same one for ever, and everywhere.
func TestGeneratorIsFixed(t *testing.T) {
	g := NewGenerator("sha256:a", "bootstrap")
	var got [6]int
	for i := range got {
		got[i] = g.Below(1000)
	}
	if want := [6]int{349, 939, 710, 759, 889, 674}; got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if a, b := NewGenerator("ab", "c").Below(1<<30), NewGenerator("a", "bc").Below(1<<30); a == b {
		t.Error("two ways to split the same text share a seed")
	}
	counts := make([]int, 7)
	for range 70_000 {
		counts[g.Below(7)]++
	}
	for i, n := range counts {
		if n < 9_500 || n > 10_500 {
			t.Errorf("%d came %d times in 70000", i, n)
		}
	}
}

// holds reports whether a rate is what x of n say, up to chance of one in a
// million.
func holds(x, n int, rate float64) bool {
	lower, upper := Interval(x, n, 1e-6)
	return lower <= rate && rate <= upper
}

func simulations(short, long int) int {
	if soak() {
		return long
	}
	return short
}

// At the margin, an environment passes with probability alpha; without a
// difference, with the probability that its plan was made for.
func TestLevelAndPowerOfEquivalence(t *testing.T) {
	n, err := SmallestNForMean(1, 0.5, 0.05, 0.2)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	runs := simulations(150, 50_000)
	draw := func(mean float64) (passed int, unseen float64) {
		x := make([]float64, n)
		for range runs {
			for i := range x {
				x[i] = mean + rng.NormFloat64()
			}
			m, err := Equivalence(x, 0.5, 0.05, 0.2)
			if err != nil {
				t.Fatal(err)
			}
			unseen += m.Unseen / float64(runs)
			if m.Passed {
				passed++
			}
		}
		return passed, unseen
	}
	passed, unseen := draw(0.5)
	if !holds(passed, runs, 0.05) {
		t.Errorf("at the margin %d of %d pass, not 5 %%", passed, runs)
	}
	if passed, _ := draw(0); LowerBound(runs-passed, runs, 1e-6) > 0.2 || UpperBound(passed, runs, 1e-6) < 0.8 {
		t.Errorf("without a difference %d of %d pass with n = %d, not 80 %%", passed, runs, n)
	}
	if passed, _ := draw(unseen); UpperBound(passed, runs, 1e-6) < 0.15 || LowerBound(passed, runs, 1e-6) > 0.25 {
		t.Errorf("at the effect that goes unseen with probability 20 %%, %v, %d of %d pass", unseen, passed, runs)
	}
}

// The exact test is conservative: never above its level.
func TestLevelOfMcNemar(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	runs := simulations(1000, 100_000)
	found, missed := 0, 0
	for range runs {
		worse, skewed := 0, 0
		for range 40 {
			if rng.IntN(2) == 0 {
				worse++
			}
			if rng.Float64() < 0.75 {
				skewed++
			}
		}
		if m, err := McNemar(worse, 40-worse, 1000, 0.05, 0.2); err != nil || m.P <= 0.05 {
			found++
		}
		m, err := McNemar(skewed, 40-skewed, 1000, 0.05, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		if m.P > 0.05 {
			missed++
		}
	}
	if LowerBound(found, runs, 1e-6) > 0.05 || found == 0 {
		t.Errorf("%d of %d alarms where changes go both ways", found, runs)
	}
	// Unseen is stated so that it is found with 80 %.
	m, _ := McNemar(20, 20, 1000, 0.05, 0.2)
	share := (m.Unseen*1000/40 + 1) / 2
	if share < 0.6 || share > 0.75 || UpperBound(missed, runs, 1e-6) > 0.2 {
		t.Errorf("a share of %v is found with 80 %%; one of 75 %% was missed %d times in %d", share, missed, runs)
	}
}

// answers draws answers to a prompt: short texts over four symbols, of which
// the first is more likely by bias.
func answers(rng *rand.Rand, n int, bias float64) [][]int32 {
	list := make([][]int32, n)
	for i := range list {
		list[i] = make([]int32, 4+rng.IntN(5))
		for j := range list[i] {
			if rng.Float64() >= bias {
				list[i][j] = int32(rng.IntN(4))
			}
		}
	}
	return list
}

// Trap 1: a permutation p without the one, and permuting across prompts. Here
// prompts have different numbers of answers from either side, and there is no
// difference: alarms come with probability alpha, although a permutation
// across prompts would see the mix.
func TestTrap1PermutationAcrossPrompts(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	runs := simulations(300, 40_000)
	alarms, across := 0, 0
	for run := range runs {
		prompts := []Samples{{answers(rng, 9, 0), answers(rng, 3, 0)}, {answers(rng, 3, 0.9), answers(rng, 9, 0.9)}}
		m, err := MMD(prompts, 39, NewGenerator("level", Format(float64(run))))
		if err != nil {
			t.Fatal(err)
		}
		if m.P < 1.0/40 || m.P > 1 {
			t.Fatalf("p = %v of 39 permutations", m.P)
		}
		if m.P <= 0.05 {
			alarms++
		}
		pooled := Samples{append(prompts[0].Want, prompts[1].Want...), append(prompts[0].Got, prompts[1].Got...)}
		if m, _ := MMD([]Samples{pooled}, 39, NewGenerator("across", Format(float64(run)))); m.P <= 0.05 {
			across++
		}
	}
	if !holds(alarms, runs, 0.05) {
		t.Errorf("%d alarms in %d runs, not 5 %%", alarms, runs)
	}
	if across < runs/5 {
		t.Errorf("across prompts there are %d alarms in %d runs: the test does not test anything", across, runs)
	}
}

func TestPowerOfMMD(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	found, certified, excluded := 0, 0, 0
	const runs = 60
	for run := range runs {
		var same, other []Samples
		for range 12 {
			same = append(same, Samples{answers(rng, 10, 0.2), answers(rng, 10, 0.2)})
			other = append(other, Samples{answers(rng, 10, 0.2), answers(rng, 10, 0.6)})
		}
		m, err := MMD(other, 99, NewGenerator("power", Format(float64(run))))
		if err != nil {
			t.Fatal(err)
		}
		if m.P <= 0.05 {
			found++
		}
		far, err1 := NonInferiority(m.ByPrompt, 0.05, 0.05, 0.2)
		m, err2 := MMD(same, 99, NewGenerator("null", Format(float64(run))))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		near, err := NonInferiority(m.ByPrompt, 0.05, 0.05, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		if near.Passed {
			certified++
		}
		if !far.Passed {
			excluded++
		}
	}
	if found < runs*9/10 || certified < runs*9/10 || excluded < runs*9/10 {
		t.Errorf("of %d: %d differences found, %d without one certified, %d with one not", runs, found, certified, excluded)
	}
}

// Nothing is cut off: a difference after a thousand equal symbols counts.
func TestMMDSeesTheEnd(t *testing.T) {
	text := func(end int32) []int32 { return append(make([]int32, 1000), end) }
	m, err := MMD([]Samples{{[][]int32{text(1), text(1), text(1), text(1), text(1)}, [][]int32{text(2), text(2), text(2), text(2), text(2)}}}, 199, NewGenerator("end"))
	if err != nil || m.P > 0.05 || m.Distance <= 0 {
		t.Errorf("%+v, %v", m, err)
	}
}

// Trap 6: a hundred prompts with fifty answers each are a hundred cases. The
// interval covers if cases are drawn, and does not if answers are.
func TestTrap6PseudoReplication(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	runs := simulations(80, 5000)
	covered, pseudo := 0, 0
	const cases, repeats = 40, 20
	for run := range runs {
		means := make([]float64, cases)
		all := make([]float64, 0, cases*repeats)
		for i := range means {
			base := rng.NormFloat64()
			for range repeats {
				x := base + 0.1*rng.NormFloat64()
				all = append(all, x)
				means[i] += x / repeats
			}
		}
		average := func(x []float64) func([]int) float64 {
			return func(drawn []int) float64 {
				sum := 0.0
				for _, i := range drawn {
					sum += x[i]
				}
				return sum / float64(len(drawn))
			}
		}
		b, err := Bootstrap(cases, 200, 0.05, NewGenerator("cover", Format(float64(run))), average(means))
		if err != nil {
			t.Fatal(err)
		}
		if b.Lower <= 0 && 0 <= b.Upper {
			covered++
		}
		m, err := Equivalence(all, 1, 0.05, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		if m.Lower <= 0 && 0 <= m.Upper {
			pseudo++
		}
	}
	// Two bounds of 95 % each; a bootstrap of 40 cases falls a little short.
	if lower, upper := Interval(covered, runs, 1e-6); upper < 0.88 || lower > 0.92 {
		t.Errorf("%d of %d intervals cover, not about 90 %%", covered, runs)
	}
	if pseudo > runs*3/5 {
		t.Errorf("%d of %d intervals over single answers cover: the test does not test anything", pseudo, runs)
	}
}

// The probability of showing anything that does not hold is alpha at most for
// all gates together, with hypotheses that depend on each other.
func TestLevelOfGates(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	runs := simulations(4000, 500_000)
	wrong, plain := 0, 0
	for range runs {
		common := rng.Float64()
		gates := []Gate{
			{"numerics", []Hypothesis{{"true", 1e-9}, {"true", 1e-6}}},
			{"decisions", []Hypothesis{{"false", common}, {"false", rng.Float64()}, {"true", 1e-9}}},
			{"latency", []Hypothesis{{"false", rng.Float64()}}},
		}
		out, err := FixedSequence(gates, 0.05)
		if err != nil {
			t.Fatal(err)
		}
		any, anyPlain := false, false
		for _, g := range out {
			for i, h := range g.Hypotheses {
				if h.Name == "false" {
					any = any || g.Tested && g.Adjusted[i] <= 0.05
					anyPlain = anyPlain || h.P <= 0.05
				}
			}
		}
		if any {
			wrong++
		}
		if anyPlain {
			plain++
		}
	}
	if LowerBound(wrong, runs, 1e-6) > 0.05 {
		t.Errorf("%d of %d show what does not hold", wrong, runs)
	}
	if LowerBound(plain, runs, 1e-6) < 0.05 {
		t.Errorf("%d of %d without gates: the test does not test anything", plain, runs)
	}
}

func TestSmallestNForMean(t *testing.T) {
	for _, bad := range [][2]float64{{1, 0}, {math.NaN(), 1}, {1, math.NaN()}, {1, 1e-9}} {
		if n, err := SmallestNForMean(bad[0], bad[1], 0.05, 0.2); err == nil {
			t.Errorf("deviation %v, margin %v: %d", bad[0], bad[1], n)
		}
	}
	if n, err := SmallestNForMean(0, 1, 0.05, 0.2); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
}

func BenchmarkEquivalence(b *testing.B) {
	x := make([]float64, 100_000)
	for i := range x {
		x[i] = math.Sin(float64(i))
	}
	for b.Loop() {
		if _, err := Equivalence(x, 1, 0.05, 0.2); err != nil {
			b.Fatal(err)
		}
	}
}
