package conformance

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/verify/attest"
)

// second gives a bench criteria of version 2.
func second(b *bench, limits ...attest.Limit) *bench {
	b.suite.Criteria.Version = 2
	b.suite.Criteria.Noise = &attest.NoiseCriteria{Ratio: 4}
	b.suite.Criteria.Limits = limits
	return b
}

var close = []attest.Limit{
	{Measure: attest.MeasureBias, Output: "probabilities", Margin: 1e-4}, {Measure: attest.MeasureAbsolute, Output: "probabilities", Margin: 1e-4},
	{Measure: attest.MeasureVariation, Output: "probabilities", Margin: 1e-4}, {Measure: attest.MeasureCosine, Output: "probabilities", Margin: 1e-4},
}

func TestSecondVersion(t *testing.T) {
	b := second(newBench(t, rounding), close...)
	replayed := b.replay()
	r := judged(t, replayed)
	if r.Verdict != attest.Certified || len(r.Gates) != 3 || len(r.Gates[1].Hypotheses) != 7 {
		t.Fatalf("%s %v: %+v", r.Verdict, r.Reasons, r.Gates)
	}
	for _, g := range r.Gates {
		for _, h := range g.Hypotheses {
			if !g.Passed || !h.Holds || h.N == 0 || h.Unseen == "" || h.Margin == "" || h.Bound == "" {
				t.Errorf("%s: %+v", g.Name, h)
			}
		}
	}
	// 32 cases asked again and moved by one ulp, and four batches of eight.
	if r.Probes == nil || r.Probes.Used != 32+32+4 || r.Probes.Failed != 0 || len(replayed.Observations) != 71+68 {
		t.Errorf("probes %+v, %d observations", r.Probes, len(replayed.Observations))
	}
	n := r.Numerics[0]
	if n.MaxULP == "0" || n.CandidateNoise == "" || n.Cosine == "" || n.SNR == "" || len(n.Histogram) < 2 || r.Latency == nil || r.Latency.Answers != 71 {
		t.Errorf("%+v, latency %+v", n, r.Latency)
	}
	cases := 0
	for _, d := range r.Distances {
		cases += d.Cases
	}
	if cases != 71 {
		t.Errorf("the distances are of %d cases", cases)
	}
	// It is the other model that is rejected, and by the decisions too.
	if r := judged(t, second(newBench(t, shifted(1)), close...).replay()); r.Verdict != attest.Rejected || r.Gates[2].Tested {
		t.Errorf("%s: %+v", r.Verdict, r.Gates)
	}
}

// A report of criteria of version 1 has nothing in it that it did not have.
func TestFirstVersionReportsAsBefore(t *testing.T) {
	raw, err := attest.Marshal(judged(t, newBench(t, rounding).replay()))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{`"gates"`, `"distances"`, `"latency"`, `"probes"`, `"histogram"`, `"maxULP"`, `"candidateNoise"`, `"cosine"`} {
		if strings.Contains(string(raw), word) {
			t.Errorf("there is %s in it", word)
		}
	}
}

// A limit is passed if it is shown, refused if the contrary is shown, and else
// the evidence does not reach.
func TestLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		by     float64
		limit  attest.Limit
		want   attest.Verdict
		reason string
	}{
		"bias, over it":        {1e-3, attest.Limit{Measure: attest.MeasureBias, Output: "probabilities", Margin: 1e-5}, attest.Rejected, "the bias of probabilities"},
		"bias, well within":    {1e-4, attest.Limit{Measure: attest.MeasureBias, Output: "probabilities", Margin: 1e-3}, attest.Certified, ""},
		"error, well within":   {1e-4, attest.Limit{Measure: attest.MeasureAbsolute, Output: "probabilities", Margin: 1e-3}, attest.Certified, ""},
		"error, about there":   {1e-4, attest.Limit{Measure: attest.MeasureAbsolute, Output: "probabilities", Margin: 1.35e-5}, attest.Inconclusive, "it is not shown that the absolute-error"},
		"error, over it":       {1e-3, attest.Limit{Measure: attest.MeasureAbsolute, Output: "probabilities", Margin: 1e-5}, attest.Rejected, "the absolute-error of probabilities is"},
		"variation, over it":   {1e-3, attest.Limit{Measure: attest.MeasureVariation, Output: "probabilities", Margin: 1e-5}, attest.Rejected, "the total-variation"},
		"latency of few cases": {0, attest.Limit{Measure: attest.MeasureSlow, Margin: 60_000}, attest.Inconclusive, "it is not shown that 99 % of answers"},
		"latency, over it":     {0, attest.Limit{Measure: attest.MeasureSlow, Margin: 1e-6}, attest.Rejected, "answers took more than"},
	} {
		t.Run(name, func(t *testing.T) {
			b := second(newBench(t, shifted(tc.by)), tc.limit)
			b.suite.Criteria.Outputs[0].Absolute = 0.1 // the tolerance is not what is tested
			b.suite.Criteria.Outputs[0].Decision.Threshold = 1e-9
			r := judged(t, b.replay())
			if tc.limit.Measure == attest.MeasureAbsolute && tc.want == attest.Inconclusive {
				// Put the margin on the observed mean: neither side is shown.
				for _, h := range r.Gates[1].Hypotheses {
					if strings.HasPrefix(h.Name, attest.MeasureAbsolute) {
						fmt.Sscan(h.Value, &b.suite.Criteria.Limits[0].Margin)
					}
				}
				b.dir = t.TempDir()
				r = judged(t, b.replay())
			}
			if r.Verdict != tc.want || tc.reason != "" && !strings.Contains(strings.Join(r.Reasons, "; "), tc.reason) {
				t.Errorf("%s: %v, want %s", r.Verdict, r.Reasons, tc.want)
			}
		})
	}
}

// An answer that never came is not fast, and is not shown to be slow.
func TestNoAnswerIsNotASlowOne(t *testing.T) {
	b := second(newBench(t, scorer), attest.Limit{Measure: attest.MeasureSlow, Margin: 60_000})
	b.server.SetMisbehave(func(n int) string {
		if n > 20 {
			return "close"
		}
		return ""
	})
	r := judged(t, b.replay())
	if r.Verdict != attest.Inconclusive || r.Gates[3].Hypotheses[0].Value != fmt.Sprint(r.Cases.Failed) {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Gates[3])
	}
}

// The candidate's own floor: an environment that answers differently each time
// is found out by asking again, although each answer is within the tolerance.
func TestANoisyEnvironment(t *testing.T) {
	var n atomic.Int64
	noisy := func(in []float32) []float32 {
		p := scorer(in)[1] + float32(4e-5*math.Sin(float64(n.Add(1))))
		return []float32{1 - p, p}
	}
	b := second(newBench(t, noisy))
	b.suite.Criteria.Outputs[0].NoiseFactor = 1e6 // so wide a tolerance that all pass
	b.suite.Document.Reference.Noise["probabilities"] = 1e-7
	r := judged(t, b.replay())
	if r.Verdict != attest.Rejected || !strings.Contains(r.Reasons[0], "noisier than the reference") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
	// A floor that is not measured is not a floor of zero.
	b = second(newBench(t, scorer))
	b.server.SetMisbehave(func(n int) string {
		if n == 71+2+5 {
			return "http-500"
		}
		return ""
	})
	if r := judged(t, b.replay()); r.Verdict != attest.Inconclusive || r.Probes.Failed != 1 || r.Cases.Compared != 71 {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Probes)
	}
	b = second(newBench(t, scorer))
	replayed := b.replay()
	replayed.Plan.Probes = 0
	replayed.Observations = slices.DeleteFunc(replayed.Observations, func(o attest.Observation) bool { return o.Probe != "" })
	replayed.Replay.Observations = len(replayed.Observations)
	if r := judged(t, replayed); r.Verdict != attest.Inconclusive {
		t.Errorf("without probes: %s: %v", r.Verdict, r.Reasons)
	}
}

// A deterministic reference is no trap: its answers repeat to the bit, and yet
// its floor is not zero, because inputs were moved by one ulp.
func TestADeterministicReferenceHasAFloor(t *testing.T) {
	s := record(t)
	if s.Document.Reference.Noise["probabilities"] == 0 {
		t.Error("the floor is zero")
	}
	// With nothing but the floor as a tolerance, another rounding is certified.
	b := second(newBench(t, rounding))
	b.suite.Criteria.Outputs[0].Absolute, b.suite.Criteria.Outputs[0].Relative = 0, 0
	if r := judged(t, b.replay()); r.Verdict != attest.Certified {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// Border cases detect, and never enter a rate.
func TestStrataAreKeptApart(t *testing.T) {
	b := second(newBench(t, scorer), close...)
	border := map[float32]bool{}
	for _, c := range b.suite.Cases {
		if c.Stratum == attest.StratumBorder {
			v, _ := b.suite.Tensors[c.InputTensor("features")].Values()
			border[float32(v[0])] = true
		}
	}
	b.server.SetModel(func(in []float32) []float32 {
		p := scorer(in)
		if border[in[0]] {
			return []float32{p[1], p[0]}
		}
		return p
	})
	r := judged(t, b.replay())
	if r.Verdict != attest.Rejected || r.Border.Flips+r.Border.Ties != 12 || len(r.Flips) != 0 || r.Power.Observed != 0 {
		t.Errorf("%s, border %+v, flips %v", r.Verdict, r.Border, r.Flips)
	}
	for _, h := range r.Gates[1].Hypotheses {
		if strings.HasPrefix(h.Name, attest.MeasureBias) && (h.N != 59 || h.Value != "0") {
			t.Errorf("the bias is of claim cases: %+v", h)
		}
	}
}

// Trap 1: no difference found in a few cases is no proof of equality.
func TestTrap1NonSignificanceIsNoProof(t *testing.T) {
	b := second(newBench(t, scorer))
	b.suite.Criteria.Plan.Margin = 0.049 // 59 cases exclude it with less than 95 % confidence
	if _, err := b.suite.Artifact(); err == nil || !strings.Contains(err.Error(), "does not exclude a rate of 0.049") {
		t.Errorf("a plan that shows nothing: %v", err)
	}
	b = second(newBench(t, scorer))
	replayed := b.replay()
	replayed.Observations = replayed.Observations[:40]
	replayed.Replay.Observations = 40
	if r := judged(t, replayed); r.Verdict == attest.Certified {
		t.Error("40 cases without a flip certify what takes 59")
	}
}

// Trap 3: every element of every case counts, the last as much as the first.
func TestTrap3ComparingAPrefix(t *testing.T) {
	b := second(newBench(t, func(in []float32) []float32 {
		p := scorer(in)
		return []float32{p[0], p[1] + 0.01}
	}))
	if r := judged(t, b.replay()); r.Verdict != attest.Rejected || r.Cases.Elements != 142 || r.Numerics[0].Exceeding < 71 {
		t.Errorf("%s, %d elements, %d over", r.Verdict, r.Cases.Elements, r.Numerics[0].Exceeding)
	}
}

// Trap 4: a retry is recorded, and the verdict is on the first attempt.
func TestTrap4Retries(t *testing.T) {
	b := second(newBench(t, scorer))
	b.retry = 5
	b.server.SetMisbehave(func(n int) string {
		if n%25 == 0 {
			return "http-500"
		}
		return ""
	})
	r := judged(t, b.replay())
	if r.Verdict != attest.Inconclusive || r.Cases.Retried == 0 || r.Cases.Failed != r.Cases.Retried {
		t.Errorf("%s: %+v", r.Verdict, r.Cases)
	}
}

// Trap 8: a cache makes repeats equal. It is the different questions that give
// it away, not the same ones.
func TestTrap8Cache(t *testing.T) {
	var first atomic.Pointer[[]float32]
	r := judged(t, second(newBench(t, func(in []float32) []float32 {
		p := scorer(in)
		if !first.CompareAndSwap(nil, &p) {
			return *first.Load()
		}
		return p
	})).replay())
	if r.Verdict != attest.Rejected || !slices.ContainsFunc(r.Reasons, func(s string) bool { return strings.Contains(s, "different questions") }) {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// Trap 9: what an answer says of itself must be what was asked for, in each
// answer and not only in the first; and it proves nothing alone.
func TestTrap9DeclaredIdentity(t *testing.T) {
	b := second(newBench(t, scorer))
	b.server.SetMisbehave(func(n int) string {
		if n == 50 {
			return "wrong-version"
		}
		return ""
	})
	if r := judged(t, b.replay()); r.Verdict != attest.Rejected || r.Errors["wrong-version"] != 1 {
		t.Errorf("one answer of another version: %s, %v", r.Verdict, r.Errors)
	}
	if r := judged(t, second(newBench(t, shifted(1))).replay()); r.Verdict != attest.Rejected {
		t.Error("another model under the same name and version was not rejected")
	}
}

// Trap 2, in the report: each kind of answer that is none is counted by name.
func TestTrap2FaultsAreCountedByName(t *testing.T) {
	for fault, class := range map[string]string{
		"nan": "", "shape": "wrong-shape", "dtype": "wrong-datatype", "drop-output": "missing-output", "extra-output": "extra-output", "error-in-200": "error-in-200",
	} {
		b := second(newBench(t, scorer))
		b.server.SetMisbehave(func(n int) string {
			if n == 30 {
				return fault
			}
			return ""
		})
		r := judged(t, b.replay())
		if r.Verdict != attest.Rejected || r.Cases.Wrong != 1 || len(r.Errors) != 1 || class != "" && r.Errors[class] != 1 {
			t.Errorf("%s: %s, %v", fault, r.Verdict, r.Errors)
		}
	}
}

func TestCriteriaOfVersionTwo(t *testing.T) {
	good := criteria(59, 0)
	good.Version, good.Noise = 2, &attest.NoiseCriteria{Ratio: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*attest.Criteria){
		"version 5": func(c *attest.Criteria) { c.Version = 5 }, "noise in version 1": func(c *attest.Criteria) { c.Version = 1 },
		"no ratio": func(c *attest.Criteria) { c.Noise = nil }, "a ratio below one": func(c *attest.Criteria) { c.Noise.Ratio = 0.5 },
		"unknown measure": func(c *attest.Criteria) { c.Limits = []attest.Limit{{Measure: "vibes", Output: "x", Margin: 1}} },
		"no margin":       func(c *attest.Criteria) { c.Limits = []attest.Limit{{Measure: attest.MeasureBias, Output: "x"}} },
		"no output":       func(c *attest.Criteria) { c.Limits = []attest.Limit{{Measure: attest.MeasureBias, Margin: 1}} },
		"latency of one": func(c *attest.Criteria) {
			c.Limits = []attest.Limit{{Measure: attest.MeasureSlow, Output: "x", Margin: 1}}
		},
	} {
		bad := good
		noise := *good.Noise
		bad.Noise = &noise
		change(&bad)
		if err := bad.Validate(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	b := second(newBench(t, scorer), attest.Limit{Measure: attest.MeasureBias, Output: "logits", Margin: 1})
	if _, err := b.suite.Artifact(); err == nil {
		t.Error("a limit on an output that is not there was accepted")
	}
}

// A slow answer is drawn where it is slow: each bar holds what its label says.
func TestDelaysAreBinnedAtEverySpeed(t *testing.T) {
	h := compare.NewLatency().Whole
	delays := []int64{1, 700, 20_000, 40_000, 45_000, 3_000_000}
	for _, d := range delays {
		if err := h.RecordValue(d); err != nil {
			t.Fatal(err)
		}
	}
	want := []attest.Bin{{From: "1", Count: 1}, {From: "512", Count: 1}, {From: "16384", Count: 1}, {From: "32768", Count: 2}, {From: "2097152", Count: 1}}
	got := bins(h)
	if !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
	plot := string(latencyPlot(&attest.Latency{Bins: got, P50: h.ValueAtQuantile(50), P99: h.ValueAtQuantile(99)}))
	for _, label := range []string{">1µs<", ">512µs<", ">16.384ms<", ">32.768ms<", ">2.097152s<"} {
		if !strings.Contains(plot, label) {
			t.Errorf("the plot has no bar from %s", label)
		}
	}
}
