package conformance

import (
	"bytes"
	cryptorand "crypto/rand"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

func embeddingCriteria(limits ...attest.Limit) attest.Criteria {
	return attest.Criteria{
		Version: 3, Noise: &attest.NoiseCriteria{Ratio: 4}, Limits: limits,
		Outputs: []attest.OutputCriteria{{Output: "embedding", Absolute: 1e-5, NoiseFactor: 8, Decision: attest.Decision{Kind: attest.DecideNearest, Labels: []string{}}}},
		Plan:    attest.BinomialPlan{Margin: 0.05, Alpha: 0.05, Beta: 0.2, N: textClaim},
	}
}

var turning = []attest.Limit{{Measure: attest.MeasureCosine, Output: "embedding", Margin: 1e-4}, {Measure: attest.MeasureNorm, Output: "embedding", Margin: 1e-3}}

// sentences are texts whose letters, and so whose embeddings, differ.
func sentences(more string) (list []Candidate) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range textClaim + textBorder + 5 {
		said := ""
		for range 12 {
			said += string(rune('a' + rng.IntN(26)))
		}
		list = append(list, Candidate{ID: fmt.Sprintf("e-%03d", i), Request: fmt.Appendf(nil, `{"input":%q%s}`, said, more), Slice: map[string]string{"odd": fmt.Sprint(i%2 == 1)}})
	}
	return list
}

func newEmbeddingBench(t testing.TB, more string, limits ...attest.Limit) *textBench {
	t.Helper()
	return newRequestBench(t, openai.NameEmbeddings, sentences(more), embeddingCriteria(limits...))
}

func TestEmbeddingsAreCertified(t *testing.T) {
	for name, more := range map[string]string{"numbers": "", "base64": `,"encoding_format":"base64"`, "dimensions": `,"dimensions":16`} {
		t.Run(name, func(t *testing.T) {
			b := newEmbeddingBench(t, more, turning...)
			replayed := b.replay(nil)
			r := judged(t, replayed)
			if r.Verdict != attest.Certified || r.Cases.Compared != textClaim+textBorder || len(r.Embeddings) != 1 || len(r.Numerics) != 0 {
				t.Fatalf("%s: %v, %+v", r.Verdict, r.Reasons, r.Cases)
			}
			e := r.Embeddings[0]
			want := 8
			if name == "dimensions" {
				want = 16
			}
			if e.Vectors != 65 || e.Same != 65 || e.Dimension != want || e.Index != textClaim || e.Overlap != "1" || e.MinNorm != "1" || e.MaxNorm != "1" || e.MaxDistance == "" || len(e.Histogram) == 0 {
				t.Errorf("%+v", e)
			}
			// 32 asked again, and four batches of eight.
			if r.Probes.Used != 36 || r.Probes.Failed != 0 || len(replayed.Observations) != 65+36 {
				t.Errorf("%+v, %d observations", r.Probes, len(replayed.Observations))
			}
			if len(r.Gates) != 3 || len(r.Gates[1].Hypotheses) != 5 || !r.Gates[2].Passed {
				t.Errorf("%+v", r.Gates)
			}
			for _, form := range Forms {
				var out bytes.Buffer
				if err := WriteForm(&out, form, r); err != nil || form != "xml" && !strings.Contains(out.String(), "embedding") {
					t.Errorf("as %s: %v", form, err)
				}
			}
			// Stored and read again, it is judged to the same bytes.
			again := *replayed
			again.Suite = stored(t, b.suite)
			if !bytes.Equal(mustJSON(judged(t, &again)), mustJSON(r)) {
				t.Error("another report after it was stored")
			}
		})
	}
}

// Whatever is wrong with a vector is never certified, and is counted by name.
func TestEmbeddingFaults(t *testing.T) {
	b := newEmbeddingBench(t, "")
	for fault, tc := range map[string]struct {
		want  attest.Verdict
		class string
	}{
		"nan": {attest.Rejected, "not-finite"}, "narrow": {attest.Rejected, "wrong-shape"}, "zero": {attest.Rejected, "no-direction"},
		"error-in-200": {attest.Rejected, "error-in-200"}, "wrong-model": {attest.Rejected, "wrong-version"}, "cached": {attest.Rejected, "cached"},
		"ignore-format": {attest.Rejected, "ignored"}, "drop-embedding": {attest.Rejected, "missing-output"}, "twice": {attest.Rejected, "extra-output"},
		"truncated": {attest.Inconclusive, "truncated"}, "http-500": {attest.Inconclusive, "http"}, "close": {attest.Inconclusive, "connection"},
		"silent-canary": {attest.Rejected, ""}, "coarse": {attest.Rejected, ""},
	} {
		t.Run(fault, func(t *testing.T) {
			r := judged(t, b.replay(b.after(fault, fourth)))
			if r.Verdict != tc.want || len(r.Reasons) == 0 {
				t.Errorf("%s: %v, want %s", r.Verdict, r.Reasons, tc.want)
			}
			if tc.class != "" && r.Errors[tc.class] != 1 {
				t.Errorf("%v, want one of class %s", r.Errors, tc.class)
			}
			if tc.class == "" && r.Embeddings[0].Exceeding != 1 {
				t.Errorf("%+v", r.Embeddings)
			}
		})
	}
	// An answer that is the golden vector of another case is told apart from a
	// vector that is merely off.
	r := b.replay(nil)
	i := slices.IndexFunc(r.Observations, func(o attest.Observation) bool { return o.Case == b.suite.Cases[4].ID && o.Probe == "" })
	k := slices.IndexFunc(r.Observations, func(o attest.Observation) bool { return o.Case == b.suite.Cases[9].ID && o.Probe == "" })
	r.Observations[i].Response = r.Observations[k].Response
	// Both texts have twelve letters, so that the counts of tokens agree.
	if got := judged(t, r); got.Verdict != attest.Rejected || got.Errors["reordered"] != 1 {
		t.Errorf("%s: %v, %v", got.Verdict, got.Reasons, got.Errors)
	}
	// In batches alone the rows are under each other's numbers.
	swapped := judged(t, b.replay(b.after("swapped", func(n int) bool { return n >= textClaim+textBorder })))
	if swapped.Verdict != attest.Rejected || !strings.Contains(swapped.Reasons[0], "noisier than the reference") || swapped.Cases.Wrong != 0 {
		t.Errorf("%s: %v", swapped.Verdict, swapped.Reasons)
	}
}

// A vector of another length has the same neighbours, and that is seen by the
// limit on norms alone.
func TestNormOfEmbeddings(t *testing.T) {
	if r := judged(t, newEmbeddingBench(t, "").replay(func(int) string { return "long" })); r.Verdict != attest.Certified || r.Embeddings[0].MaxNorm != "2" {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Embeddings)
	}
	r := judged(t, newEmbeddingBench(t, "", turning...).replay(func(int) string { return "long" }))
	if r.Verdict != attest.Rejected || !strings.Contains(r.Reasons[0], "norm-difference of embedding is 1") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// Trap 10: a cosine of 0.999 hides that searches find something else. With a
// tolerance that lets every vector pass, and no limit on the mean, the decisions
// still reject.
func TestTrap10CosineHidesFlips(t *testing.T) {
	b := newEmbeddingBench(t, "")
	b.suite.Criteria.Outputs[0].Absolute = 0.1
	r := judged(t, b.replay(b.after("coarse", every)))
	if r.Verdict != attest.Rejected || r.Embeddings[0].Exceeding != 0 || len(r.Flips) != 1 || r.Flips[0].To != "another neighbour" || r.Flips[0].Cases != r.Power.Observed || r.Power.Observed < 3 {
		t.Errorf("%s: %v, %v, %+v", r.Verdict, r.Reasons, r.Flips, r.Embeddings)
	}
	if r.Embeddings[0].Overlap == "1" || !strings.Contains(r.Difference, "to another neighbour") {
		t.Errorf("%s, %+v", r.Difference, r.Embeddings)
	}
	if len(r.Slices) != 2 || r.Slices[0].Flips+r.Slices[1].Flips != r.Power.Observed {
		t.Errorf("%+v", r.Slices)
	}
}

// The nearest neighbour is of another direction than a copy of it; whoever is
// left out is the case itself and no other.
func TestNeighbours(t *testing.T) {
	n, err := compare.NewNeighbours([][]float64{{1, 0, 0}, {2, 0, 0}, {1, 1, 0}, {0, 0, 3}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.Around([]float64{1, 0.1, 0}, 2, 0)
	if err != nil || h.Nearest != 0 || !slices.Equal(h.Top, []int{1, 2}) || math.Abs(h.Lead-(1-1.1/math.Sqrt2)/math.Sqrt(1.01)) > 1e-12 || math.Abs(h.Apart-math.Sqrt(2-math.Sqrt2)) > 1e-12 {
		t.Errorf("%+v, %v", h, err)
	}
	if h, err := n.Around([]float64{0, 0, 1}, 10, 3); err != nil || h.Nearest == 3 || len(h.Top) != 3 {
		t.Errorf("%+v, %v", h, err)
	}
	for name, v := range map[string][]float64{"zero": {0, 0, 0}, "short": {1, 1}, "infinite": {math.Inf(1), 0, 0}, "NaN": {math.NaN(), 1, 1}} {
		if _, err := n.Around(v, 1, -1); err == nil {
			t.Errorf("a vector that is %s has neighbours", name)
		}
	}
	for name, list := range map[string][][]float64{"one": {{1}}, "two dimensions": {{1, 2}, {1}}, "no direction": {{1, 2}, {0, 0}}} {
		if _, err := compare.NewNeighbours(list); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// An output over the Open Inference Protocol is an embedding if the criteria say
// so: border cases are those that are nearest to another neighbour.
func TestTensorsAsEmbeddings(t *testing.T) {
	embed := func(in []float32) []float32 {
		return []float32{float32(math.Sin(float64(3 * in[0]))), float32(math.Cos(float64(2 * in[1])))}
	}
	s := targettest.NewServer(t, embed)
	c := embeddingCriteria(attest.Limit{Measure: attest.MeasureCosine, Output: "probabilities", Margin: 1e-4})
	c.Outputs[0].Output = "probabilities"
	suite, err := Record(t.Context(), connect(t, s), RecordOptions{
		Name: "towers", Model: attest.ResourceOf("", digest.FromString("model")), Target: targetOf(s),
		Candidates: candidates(120), Claim: 59, Border: 12, Criteria: c, DataClassification: "synthetic", Clock: func() time.Time { return start },
	})
	if err != nil {
		t.Fatal(err)
	}
	if noise := suite.Document.Reference.Noise["probabilities"]; !(noise < 1e-10) {
		t.Errorf("the floor of the cosine distance is %v", noise)
	}
	b := &bench{t: t, suite: suite, server: targettest.NewServer(t, embed), dir: t.TempDir()}
	r := judged(t, b.replay())
	if r.Verdict != attest.Certified || r.Cases.Compared != 71 || r.Embeddings[0].Dimension != 2 || r.Probes.Used != 32+32+4 {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r)
	}
	var claim, border []float64
	e, err := newEmbeddings(suite, "probabilities")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range suite.Cases {
		if c.Stratum == attest.StratumBorder {
			border = append(border, e.reference[c.ID].Lead)
		} else {
			claim = append(claim, e.reference[c.ID].Lead)
		}
	}
	slices.Sort(claim)
	if slices.Max(border) > claim[len(claim)/2] {
		t.Errorf("border cases lead by up to %v, and the median of claim cases is %v", slices.Max(border), claim[len(claim)/2])
	}
	b.server.SetModel(func(in []float32) []float32 { x := embed(in); return []float32{x[0], x[1] * 1.2} })
	b.dir = t.TempDir()
	if r := judged(t, b.replay()); r.Verdict != attest.Rejected || r.Embeddings[0].Exceeding == 0 {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

func TestEmbeddingSuites(t *testing.T) {
	good := newEmbeddingBench(t, "").suite
	id := good.Cases[3].ID
	part, err := good.Seal(map[string]bool{id: true}, cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	closed := stored(t, good)
	if _, ok := closed.Texts[id]; ok || closed.Closed() != 1 || len(closed.Tensors) != textClaim+textBorder-1 {
		t.Error("the sealed case is there")
	}
	if err := closed.Open(part); err != nil || closed.Texts[id].Request != good.Texts[id].Request {
		t.Errorf("%v", err)
	}
	for want, change := range map[string]func(*Suite){
		"has no request":         func(s *Suite) { delete(s.Texts, s.Cases[0].ID) },
		"requests of 66 cases":   func(s *Suite) { s.Texts["more"] = s.Texts[s.Cases[0].ID] },
		"decide by nearest":      func(s *Suite) { s.Criteria.Outputs = append(s.Criteria.Outputs, s.Criteria.Outputs[0]) },
		"no golden output":       func(s *Suite) { delete(s.Tensors, s.Cases[0].OutputTensor("embedding")) },
		"is of an embedding":     func(s *Suite) { x := s.Texts[s.Cases[0].ID]; x.Choices = []attest.TextChoice{{}}; s.Texts[x.ID] = x },
		"has no direction":       func(s *Suite) { clear(s.Tensors[s.Cases[5].OutputTensor("embedding")].Bits) },
		"of version 3":           func(s *Suite) { s.Criteria.Version = 2 },
		"labels and no relative": func(s *Suite) { s.Criteria.Outputs[0].Relative = 1e-6 },
	} {
		s := stored(t, newEmbeddingBench(t, "").suite)
		change(s)
		if err := s.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// Several texts in one case, or none, cannot be recorded.
	list := sentences("")
	list[7].Request = json.RawMessage(`{"input":["one","two"]}`)
	b := newEmbeddingBench(t, "")
	tg, err := Open(b.target)
	if err != nil {
		t.Fatal(err)
	}
	c := embeddingCriteria()
	_, err = Record(t.Context(), tg, RecordOptions{Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: b.target, Candidates: list,
		Claim: c.Plan.N, Border: textBorder, Criteria: c, DataClassification: "synthetic", Clock: time.Now})
	if err == nil || !strings.Contains(err.Error(), "shape [2 8] for 1 questions") {
		t.Errorf("%v", err)
	}
}
