package conformance

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// Each measure of two distributions, by its definition.
var divergences = map[string]func(p, q []float64) float64{
	attest.MeasureVariation: func(p, q []float64) (x float64) {
		for i := range p {
			x += math.Abs(p[i]-q[i]) / 2
		}
		return x
	},
	attest.MeasureHellinger: func(p, q []float64) (x float64) {
		for i := range p {
			x += math.Pow(math.Sqrt(p[i])-math.Sqrt(q[i]), 2) / 2
		}
		return math.Sqrt(x)
	},
	attest.MeasureKL: kl,
	attest.MeasureJS: func(p, q []float64) float64 {
		m := make([]float64, len(p))
		for i := range p {
			m[i] = (p[i] + q[i]) / 2
		}
		return kl(p, m)/2 + kl(q, m)/2
	},
	attest.MeasureCosine: func(p, q []float64) float64 {
		var pp, qq, pq float64
		for i := range p {
			pp, qq, pq = pp+p[i]*p[i], qq+q[i]*q[i], pq+p[i]*q[i]
		}
		return 1 - pq/math.Sqrt(pp*qq)
	},
}

func kl(p, q []float64) (x float64) {
	for i := range p {
		x += p[i] * math.Log(p[i]/q[i])
	}
	return x
}

func wide(x []float32) (y []float64) {
	for _, v := range x {
		y = append(y, float64(v))
	}
	return y
}

// Every limit on distributions and directions holds for a model that is further
// within it than the cases leave open, and refuses the same model if it is less;
// and what is held against the limit is the mean by the measure's definition.
func TestLimitsOnDistributions(t *testing.T) {
	const by = 0.1
	among := func(t *testing.T, limits ...attest.Limit) (*bench, attest.Report) {
		b := second(newBench(t, shifted(by)), limits...)
		b.suite.Criteria.Version = 3
		b.suite.Criteria.Outputs[0].Absolute = 0.1 // neither the tolerance nor the decision is what is tested
		b.suite.Criteria.Outputs[0].Decision.Threshold = 1e-9
		return b, judged(t, b.replay())
	}
	var all []attest.Limit
	means := map[string]float64{}
	b := newBench(t, scorer)
	for measure, f := range divergences {
		sum, n := 0.0, 0
		for _, c := range b.suite.Cases {
			if c.Stratum != attest.StratumClaim {
				continue
			}
			x, err := b.suite.Tensors[c.InputTensor("features")].Values()
			if err != nil {
				t.Fatal(err)
			}
			in := []float32{float32(x[0]), float32(x[1])}
			sum += f(wide(scorer(in)), wide(shifted(by)(in)))
			n++
		}
		means[measure] = sum / float64(n)
		all = append(all, attest.Limit{Measure: measure, Output: "probabilities", Margin: 2 * means[measure]})
	}
	slices.SortFunc(all, func(a, b attest.Limit) int { return strings.Compare(a.Measure, b.Measure) })
	_, r := among(t, all...)
	if r.Verdict != attest.Certified {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
	found := 0
	for _, h := range r.Gates[1].Hypotheses {
		measure, _, _ := strings.Cut(h.Name, " of ")
		want, ok := means[measure]
		if !ok {
			continue
		}
		found++
		// The answers are FP32: of so small a distance they leave six digits.
		if got, err := strconv.ParseFloat(h.Value, 64); err != nil || math.Abs(got-want) > 1e-6*want+1e-9 || !h.Holds || h.N != 59 {
			t.Errorf("%+v, want %v", h, want)
		}
	}
	if found != len(divergences) {
		t.Errorf("%d of %d measures are in %+v", found, len(divergences), r.Gates[1])
	}
	for _, l := range all {
		t.Run(l.Measure, func(t *testing.T) {
			l.Margin /= 4
			_, r := among(t, l)
			if r.Verdict != attest.Rejected || !strings.Contains(strings.Join(r.Reasons, "; "), "the "+l.Measure+" of probabilities is ") {
				t.Errorf("%s: %v", r.Verdict, r.Reasons)
			}
		})
	}
}

// An answer that excludes what the reference does not is infinitely far by
// Kullback and Leibler: no mean of it is shown to be within a limit.
func TestInfinitelyFar(t *testing.T) {
	excluding := func(in []float32) []float32 {
		if in[0] > 1.5 {
			return []float32{0, 1}
		}
		return scorer(in)
	}
	b := second(newBench(t, excluding), attest.Limit{Measure: attest.MeasureKL, Output: "probabilities", Margin: 1000})
	b.suite.Criteria.Version = 3
	b.suite.Criteria.Outputs[0].Absolute = 1
	b.suite.Criteria.Outputs[0].Decision.Threshold = 1e-9
	r := judged(t, b.replay())
	if r.Verdict != attest.Inconclusive || !strings.Contains(strings.Join(r.Reasons, "; "), "kl-divergence of probabilities cannot be judged") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// four are probabilities of four classes, of which two are to be the greatest.
func four(in []float32) []float32 {
	scores := []float64{float64(2 * in[0]), float64(in[1] - in[0]), float64(-2 * in[1]), 0.3}
	sum := 0.0
	for i, s := range scores {
		scores[i] = math.Exp(s)
		sum += scores[i]
	}
	var p []float32
	for _, s := range scores {
		p = append(p, float32(s/sum))
	}
	return p
}

// trade is the model with the places of two ranks exchanged, the first is 0.
func trade(a, b int) func([]float32) []float32 {
	return func(in []float32) []float32 {
		p := four(in)
		rank := []int{0, 1, 2, 3}
		slices.SortFunc(rank, func(i, j int) int { return int(math.Copysign(1, float64(p[j]-p[i]))) })
		p[rank[a]], p[rank[b]] = p[rank[b]], p[rank[a]]
		return p
	}
}

// ranked is a suite of which two labels of four are decided to be the greatest.
func ranked(t testing.TB, limits ...attest.Limit) *Suite {
	t.Helper()
	s := targettest.NewServer(t, four)
	c := criteria(59, 0)
	c.Version, c.Noise, c.Limits = 3, &attest.NoiseCriteria{Ratio: 4}, limits
	c.Outputs[0].Absolute = 1 // the numbers are not what is tested
	c.Outputs[0].Decision = attest.Decision{Kind: attest.DecideTopK, Labels: []string{"a", "b", "c", "d"}, K: 2}
	suite, err := Record(t.Context(), connect(t, s), RecordOptions{
		Name: "ranking", Model: attest.ResourceOf("", digest.FromString("model")), Target: targetOf(s),
		Candidates: candidates(120), Claim: 59, Border: 12, Criteria: c, DataClassification: "synthetic", Clock: func() time.Time { return start },
	})
	if err != nil {
		t.Fatal(err)
	}
	return suite
}

// Which two labels are the greatest must not flip: which of the two is before the
// other may, and which is third may not become second.
func TestTopK(t *testing.T) {
	suite := ranked(t)
	// Border cases are those in which the second is hardly before the third.
	margins := map[string][]float64{}
	for _, c := range suite.Cases {
		x, err := suite.Tensors[c.OutputTensor("probabilities")].Values()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(x)
		margins[c.Stratum] = append(margins[c.Stratum], x[2]-x[1])
	}
	if border, claim := slices.Max(margins[attest.StratumBorder]), slices.Max(margins[attest.StratumClaim]); len(margins[attest.StratumBorder]) != 12 || border > claim/4 {
		t.Errorf("%d border cases, with margins up to %v; those of claim cases are up to %v", len(margins[attest.StratumBorder]), border, claim)
	}
	for _, tc := range []struct {
		name  string
		model func([]float32) []float32
		want  attest.Verdict
	}{
		{"the same", four, attest.Certified},
		{"first and second exchanged", trade(0, 1), attest.Certified},
		{"third and fourth exchanged", trade(2, 3), attest.Certified},
		{"second and third exchanged", trade(1, 2), attest.Rejected},
		{"first and fourth exchanged", trade(0, 3), attest.Rejected},
		{"second and third exchanged in every tenth case", func(in []float32) []float32 {
			if math.Abs(float64(in[0])) > 1.6 {
				return trade(1, 2)(in)
			}
			return four(in)
		}, attest.Rejected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &bench{t: t, suite: suite, server: targettest.NewServer(t, tc.model), dir: t.TempDir()}
			r := judged(t, b.replay())
			if r.Verdict != tc.want || r.Cases.Compared != 71 {
				t.Fatalf("%s: %v, %d cases compared", r.Verdict, r.Reasons, r.Cases.Compared)
			}
			if (len(r.Flips) > 0) != (tc.want == attest.Rejected) {
				t.Errorf("flips %+v", r.Flips)
			}
			for _, f := range r.Flips {
				if len(f.From) != len("a+b") || f.From[1] != '+' || f.From == f.To || f.Cases == 0 {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

// What a report says of the numbers in units in the last place, and of direction
// and signal, is what the answers were made to have.
func TestReportedDistance(t *testing.T) {
	const steps = 3
	var signal, noise, other, both float64
	moved := func(in []float32) []float32 {
		p := scorer(in)
		p[0] = math.Float32frombits(math.Float32bits(p[0]) + steps)
		return p
	}
	b := second(newBench(t, moved))
	for _, c := range b.suite.Cases {
		w, err := b.suite.Tensors[c.OutputTensor("probabilities")].Values()
		if err != nil {
			t.Fatal(err)
		}
		g := float64(math.Float32frombits(math.Float32bits(float32(w[0])) + steps))
		signal += w[0]*w[0] + w[1]*w[1]
		other += g*g + w[1]*w[1]
		both += w[0]*g + w[1]*w[1]
		noise += (g - w[0]) * (g - w[0])
	}
	n := judged(t, b.replay()).Numerics[0]
	if n.MaxULP != fmt.Sprint(steps) || n.BitsDiffer != 71 {
		t.Errorf("%+v", n)
	}
	for _, x := range []struct {
		what, got string
		want      float64
	}{{"SNR", n.SNR, 10 * math.Log10(signal/noise)}, {"cosine", n.Cosine, both / math.Sqrt(signal*other)}} {
		if got, err := strconv.ParseFloat(x.got, 64); err != nil || math.Abs(got-x.want) > 1e-8*math.Abs(x.want) {
			t.Errorf("%s is %s, want %v", x.what, x.got, x.want)
		}
	}
	if n := judged(t, second(newBench(t, scorer)).replay()).Numerics[0]; n.MaxULP != "0" || n.SNR != "inf" || n.Cosine != "1" {
		t.Errorf("of the same numbers: %+v", n)
	}
}

// everyKind returns replays of every kind of suite and with every verdict; in a
// long test also of every decision and limit.
func everyKind(t testing.TB) (list []*Replayed) {
	t.Helper()
	list = append(list, newBench(t, shifted(0.2)).replay(), second(newBench(t, shifted(0.2)), close...).replay(), second(newBench(t, rounding), close...).replay())
	// Nobody answers some of the cases.
	silent := second(newBench(t, scorer), attest.Limit{Measure: attest.MeasureSlow, Margin: 60_000})
	silent.server.SetMisbehave(func(n int) string {
		if n%9 == 8 {
			return "close"
		}
		return ""
	})
	list = append(list, silent.replay())
	var limits []attest.Limit
	for _, measure := range slices.Sorted(maps.Keys(divergences)) {
		limits = append(limits, attest.Limit{Measure: measure, Output: "probabilities", Margin: 0.5})
	}
	suite := ranked(t, limits...)
	models := []func([]float32) []float32{trade(0, 1), trade(1, 2)}
	decisions := []attest.TextCriteria{{Decision: attest.DecideText, Tie: 1e-3}}
	if soak() {
		models = append(models, four)
		decisions = append(decisions, attest.TextCriteria{Decision: attest.DecideToken}, attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `is (\d+) number`})
	}
	for _, model := range models {
		list = append(list, (&bench{t: t, suite: suite, server: targettest.NewServer(t, model), dir: t.TempDir()}).replay())
	}
	edits := []attest.Limit{{Measure: attest.MeasureEdit, Margin: 0.01}, {Measure: attest.MeasureLogprob, Margin: 0.01}}
	for _, decision := range decisions {
		b := newTextBench(t, textCandidates(withLogprobs), textCriteria(decision, edits...))
		other, broken := b.after("silent-canary", func(n int) bool { return n%3 == 0 }), b.after("nan", fourth)
		list = append(list, b.replay(other))
		if soak() {
			list = append(list, b.replay(nil), b.replay(broken))
		}
	}
	vectors := newEmbeddingBench(t, "", turning...)
	swapped := vectors.after("swapped", every)
	list = append(list, vectors.replay(nil))
	if !soak() {
		return list
	}
	list = append(list, vectors.replay(swapped), streamed(t, 368, []attest.Limit{{Measure: attest.MeasureFirstToken, Margin: 100}, {Measure: attest.MeasureToken, Margin: 10}}, func(i int) pace {
		return pace{time.Duration(i) * time.Millisecond, time.Duration(i) * 100 * time.Microsecond}
	}))
	return list
}
