package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Of one case a cluster, the ratio is the mean and its error the usual one.
func TestClusteredIsTheMeanOfCases(t *testing.T) {
	x, ones := []float64{0.1, 0, 0.3, -0.2, 0.05, 0.4, 0, 0.15}, make([]float64, 8)
	for i := range ones {
		ones[i] = 1
	}
	c, err1 := Clustered(x, ones, 2, 0.3, 0.05, 0.2, 1999, NewGenerator("x"))
	m, err2 := NonInferiority(x, 0.3, 0.05, 0.2)
	if err1 != nil || err2 != nil || !near(c.Mean, m.Mean) || !near(c.StandardError, m.StandardError) || c.N != 8 || c.Cases != 8 {
		t.Errorf("%+v, %+v, %v, %v", c, m, err1, err2)
	}
	// The bounds are where p is alpha.
	for _, margin := range []float64{c.Upper * 0.999, c.Upper * 1.001} {
		at, err := Clustered(x, ones, 2, margin, 0.05, 0.2, 1999, NewGenerator("x"))
		if err != nil || at.Passed != (margin > c.Upper) || at.Upper != c.Upper {
			t.Errorf("margin %v, bound %v: %+v, %v", margin, c.Upper, at, err)
		}
	}
	if at, _ := Clustered(x, ones, 2, 1e-9, 0.05, 0.2, 1999, NewGenerator("x")); (at.Beyond <= 0.05) != (at.Lower > 1e-9) {
		t.Errorf("%+v", at)
	}
	// Clusters of other sizes: the mean is over all cases.
	c, err := Clustered([]float64{2, 0, 1}, []float64{4, 1, 3}, 1, 0.9, 0.05, 0.2, 199, NewGenerator("x"))
	if err != nil || c.Mean != 3.0/8 || c.Cases != 8 {
		t.Errorf("%+v, %v", c, err)
	}
	for name, f := range map[string]func() (ClusterTest, error){
		"no margin": func() (ClusterTest, error) { return Clustered(x, ones, 2, 0, 0.05, 0.2, 199, NewGenerator("x")) },
		"one": func() (ClusterTest, error) {
			return Clustered(x[:1], ones[:1], 2, 1, 0.05, 0.2, 199, NewGenerator("x"))
		},
		"NaN": func() (ClusterTest, error) {
			return Clustered([]float64{1, math.NaN()}, ones[:2], 2, 1, 0.05, 0.2, 199, NewGenerator("x"))
		},
		"too few": func() (ClusterTest, error) { return Clustered(x, ones, 2, 0.3, 0.05, 0.2, 10, NewGenerator("x")) },
		"no cases": func() (ClusterTest, error) {
			return Clustered(x[:2], []float64{1, 0}, 2, 0.3, 0.05, 0.2, 199, NewGenerator("x"))
		},
		"over most": func() (ClusterTest, error) { return Clustered(x, ones, 0.2, 0.3, 0.05, 0.2, 199, NewGenerator("x")) },
		"impossible": func() (ClusterTest, error) {
			return AccuracyLoss([]Paired{{2, 0, 1}, {0, 0, 1}}, 0.1, 0.05, 0.2, 199, NewGenerator("x"))
		},
	} {
		if c, err := f(); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// What does not vary is not known for that: without a change in n cases the rate
// may still be as high as Clopper and Pearson say.
func TestClusteredWithoutVariation(t *testing.T) {
	for n, passes := range map[int]bool{58: false, 59: true} {
		zeros, ones := make([]float64, n), make([]float64, n)
		for i := range ones {
			ones[i] = 1
		}
		c, err := Clustered(zeros, ones, 1, 0.05, 0.05, 0.2, 199, NewGenerator("x"))
		if err != nil || c.Passed != passes || c.Upper != UpperBound(0, n, 0.05) || c.Unseen <= 0 {
			t.Errorf("%d: %+v, %v", n, c, err)
		}
	}
	if c, err := Clustered([]float64{1, 1, 1, 1}, []float64{1, 1, 1, 1}, 1, 0.05, 0.05, 0.2, 199, NewGenerator("x")); err != nil || c.Passed || c.Beyond > 1e-4 {
		t.Errorf("%+v, %v", c, err)
	}
}

// At the margin, passing has probability alpha at most, however skewed the cases
// are, and whether or not those of a cluster agree; and the same for being said to
// be beyond it.
func TestLevelOfClustered(t *testing.T) {
	runs := simulations(250, 20_000)
	for name, draw := range map[string]func(rng *rand.Rand) (sum, size float64){
		// One in five is far off: the mean is 0.1.
		"skewed": func(rng *rand.Rand) (float64, float64) {
			if rng.Float64() < 0.2 {
				return rng.Float64(), 1
			}
			return 0, 1
		},
		// All cases of a cluster share their fate, and there are one to four.
		"clusters": func(rng *rand.Rand) (float64, float64) {
			n := float64(1 + rng.IntN(4))
			if rng.Float64() < 0.1 {
				return n, n
			}
			return 0, n
		},
		"normal": func(rng *rand.Rand) (float64, float64) { return 0.1 + 0.3*rng.NormFloat64(), 1 },
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(11, 12))
			passed, beyond, student := 0, 0, 0
			for run := range runs {
				sums, sizes := make([]float64, 60), make([]float64, 60)
				for i := range sums {
					sums[i], sizes[i] = draw(rng)
				}
				c, err := Clustered(sums, sizes, 10, 0.1, 0.05, 0.2, 399, NewGenerator(name, Format(float64(run))))
				if err != nil {
					t.Fatal(err)
				}
				if c.Passed {
					passed++
				}
				if c.Beyond <= 0.05 {
					beyond++
				}
				if m, err := NonInferiority(sums, 0.1, 0.05, 0.2); err == nil && m.Passed {
					student++
				}
			}
			t.Logf("%d of %d passed and %d were beyond; by Student %d passed", passed, runs, beyond, student)
			// A little over alpha is what 60 skewed cases cost; Student's test is
			// further off.
			if LowerBound(passed, runs, 1e-6) > 0.06 || LowerBound(beyond, runs, 1e-6) > 0.06 || passed+beyond == 0 {
				t.Errorf("%d of %d passed and %d were beyond", passed, runs, beyond)
			}
		})
	}
}

// Accuracy: at the margin it passes with probability alpha at most, whether
// changes are rare or go both ways; and with power where a plan has it.
func TestLevelAndPowerOfAccuracyLoss(t *testing.T) {
	runs := simulations(70, 10_000)
	for name, tc := range map[string]struct {
		n, size       int
		worse, better float64
		pass          float64 // the probability, at least (above 0.05) or at most
	}{
		"one way, at the margin":       {200, 1, 0.05, 0, 0.05},
		"both ways, at the margin":     {200, 1, 0.10, 0.05, 0.05},
		"clusters, at the margin":      {120, 3, 0.10, 0.05, 0.05},
		"no change":                    {200, 1, 0, 0, 1},
		"rare changes":                 {400, 1, 0.005, 0.005, 0.95},
		"noise that goes both ways":    {600, 1, 0.06, 0.06, 0.9},
		"noise of clusters, both ways": {400, 3, 0.05, 0.05, 0.8},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(13, 14))
			passed := 0
			for run := range runs {
				list := make([]Paired, tc.n)
				for i := range list {
					list[i].Cases = tc.size
					switch x := rng.Float64(); { // all cases of a cluster together
					case x < tc.worse:
						list[i].Worse = tc.size
					case x < tc.worse+tc.better:
						list[i].Better = tc.size
					}
				}
				a, err := AccuracyLoss(list, 0.05, 0.05, 0.2, 399, NewGenerator(name, Format(float64(run))))
				if err != nil {
					t.Fatal(err)
				}
				if a.Passed {
					passed++
				}
				if a.Passed != (a.Upper < 0.05) {
					t.Fatalf("it passed %v, and its bound is %v", a.Passed, a.Upper)
				}
			}
			t.Logf("%d of %d passed", passed, runs)
			if tc.pass <= 0.05 && LowerBound(passed, runs, 1e-6) > tc.pass || tc.pass > 0.05 && UpperBound(passed, runs, 1e-6) < tc.pass {
				t.Errorf("%d of %d passed, not %v", passed, runs, tc.pass)
			}
		})
	}
}
