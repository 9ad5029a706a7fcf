package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

// words draws n texts of 6 words, each the second of two with probability p.
func words(rng *rand.Rand, n int, p float64) [][]int32 {
	list := make([][]int32, n)
	for i := range list {
		for range 6 {
			word := int32(0)
			if rng.Float64() < p {
				word = 1
			}
			list[i] = append(list[i], word)
		}
	}
	return list
}

// The equivalence of sampled texts: the mean of the discrepancies of prompts has
// to be below a margin. At the margin it is certified with at most probability
// alpha, also where prompts differ in how far they are apart; without a
// difference nearly always; and what is stated as unseen is refused as often as is
// stated.
func TestLevelAndPowerOfSampledTexts(t *testing.T) {
	const margin, alpha, beta, samples = 0.05, 0.05, 0.2, 8
	runs, prompts := simulations(120, 10_000), 30
	// Of words whose probabilities are p and p + d, the distance is 2 d².
	at := func(distance float64) float64 { return math.Sqrt(distance / 2) }
	run := func(round int, distance float64, uneven bool) ClusterTest {
		rng := rand.New(rand.NewPCG(uint64(round), 11))
		list := make([]Samples, prompts)
		for i := range list {
			d, p := distance, 0.1+0.3*rng.Float64()
			if uneven {
				d *= 2 * rng.Float64()
			}
			list[i] = Samples{words(rng, samples, p), words(rng, samples, p+at(d))}
		}
		m, err := MMD(list, 19, NewGenerator("level"))
		if err != nil {
			t.Fatal(err)
		}
		ones := make([]float64, prompts)
		for i := range ones {
			ones[i] = 1
		}
		c, err := Clustered(m.ByPrompt, ones, 2, margin, alpha, beta, 999, NewGenerator("level", "clusters"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, uneven := range []bool{false, true} {
		prompts = 30
		certified, beyond, same, unseen := 0, 0, 0, 0.0
		for i := range runs {
			c := run(i, margin, uneven)
			if c.Passed {
				certified++
			}
			if c.Beyond <= alpha {
				beyond++
			}
			c = run(i, 0, uneven)
			if c.Passed {
				same++
			}
			unseen += c.Unseen / float64(runs)
		}
		for what, n := range map[string]int{"certified": certified, "refused": beyond} {
			if LowerBound(n, runs, 0.001) > alpha {
				t.Errorf("uneven %v: %d of %d are %s at the margin, more than alpha", uneven, n, runs, what)
			}
		}
		if UpperBound(same, runs, 0.001) < 0.9 || LowerBound(same, runs, 0.001) < 0.8 {
			t.Errorf("uneven %v: %d of %d certified without a difference", uneven, same, runs)
		}
		missed := 0
		for i := range runs {
			if run(i, unseen, uneven).Passed {
				missed++
			}
		}
		// The effect moves the error with it, which the statement does not know.
		if LowerBound(missed, runs, 0.001) > 1.5*beta {
			t.Errorf("uneven %v: a distance of %v is certified %d times of %d, and stated to be so with at most %v", uneven, unseen, missed, runs, beta)
		}
		// With the fewest prompts that there may be.
		prompts = 10
		atFew := 0
		for i := range runs {
			if run(i, margin, uneven).Passed {
				atFew++
			}
		}
		if LowerBound(atFew, runs, 0.001) > alpha {
			t.Errorf("uneven %v: %d of %d are certified at the margin with 10 prompts, more than alpha", uneven, atFew, runs)
		}
		t.Logf("uneven %v: at the margin %d certified and %d refused, without a difference %d certified, at %.4f %d certified; with 10 prompts at the margin %d; of %d", uneven, certified, beyond, same, unseen, missed, atFew, runs)
	}
}

// Samples that two sides have in common are too much alike for two draws: all of
// them in another order, or half of them; and draws of one distribution are not.
func TestAlike(t *testing.T) {
	runs := simulations(60, 5_000)
	count := func(shared int) (alike, same int) {
		for i := range runs {
			rng := rand.New(rand.NewPCG(uint64(i), 12))
			list := make([]Samples, 20)
			for k := range list {
				p := 0.2 + 0.3*rng.Float64()
				want, got := words(rng, 8, p), words(rng, 8, p)
				copy(got[8-shared:], want[:shared])
				list[k] = Samples{want, got}
			}
			m, err := MMD(list, 99, NewGenerator("alike"))
			if err != nil {
				t.Fatal(err)
			}
			if m.Alike <= 0.01 {
				alike++
			}
			if m.P <= 0.05 {
				same++
			}
		}
		return alike, same
	}
	honest, different := count(0)
	if LowerBound(honest, runs, 0.001) > 0.01 || LowerBound(different, runs, 0.001) > 0.05 {
		t.Errorf("%d of %d draws are called alike, and %d different", honest, runs, different)
	}
	all, different := count(8)
	if all != runs || different != 0 {
		t.Errorf("%d of %d copies are seen, and %d are called different", all, runs, different)
	}
	half, _ := count(4)
	if UpperBound(half, runs, 0.001) < 0.9 {
		t.Errorf("%d of %d copies of a half are seen", half, runs)
	}
	// Where nothing varies every way to deal them out is as near, and as far.
	same := [][]int32{{1}, {1}, {1}}
	if m, err := MMD([]Samples{{same, same}}, 99, NewGenerator("ties")); err != nil || m.Alike != 1 || m.P != 1 {
		t.Errorf("without variation: %+v, %v", m, err)
	}
	t.Logf("alike: %d of draws, %d of copies, %d of copies of a half, of %d", honest, all, half, runs)
}
