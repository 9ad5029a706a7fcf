package openai_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/verify/attest"
)

// A few cases, so that it is quick: 14 without a flip exclude a rate of 20 %.
const claim, border, margin = 14, 4, 0.2

// llamaSuite is a suite over llama.cpp.
type llamaSuite struct {
	t          *testing.T
	protocol   string
	options    string
	criteria   attest.Criteria
	candidates []conformance.Candidate
	suite      *conformance.Suite
}

func (s *llamaSuite) target(url string) attest.Target {
	return attest.Target{Protocol: s.protocol, URL: url, Model: "assistant", Version: "assistant-1.0.0", Options: s.options}
}

func (s *llamaSuite) record(url string, threads *attest.OtherThreads) error {
	s.t.Helper()
	tg, err := conformance.Open(s.target(url))
	if err != nil {
		s.t.Fatal(err)
	}
	s.suite, err = conformance.Record(s.t.Context(), tg, conformance.RecordOptions{
		Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: s.target(url), Candidates: s.candidates, Claim: claim, Border: border,
		Criteria: s.criteria, DataClassification: "synthetic", Threads: threads, Clock: time.Now,
	})
	return err
}

func (s *llamaSuite) replay(url string, threads *attest.OtherThreads) attest.Report {
	s.t.Helper()
	a, err := s.suite.Artifact()
	if err != nil {
		s.t.Fatal(err)
	}
	criteria, err := attest.Marshal(s.criteria)
	if err != nil {
		s.t.Fatal(err)
	}
	env := attest.Environment{Name: "prod", Target: s.target(url), Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: time.Now().UTC()}
	plan, err := conformance.NewPlan(conformance.PlanOptions{
		Model: digest.FromString("model"), Suite: s.suite, SuiteDigest: a.Descriptor.Digest, CriteriaDigest: digest.FromBytes(criteria),
		Environment: env, EnvironmentDigest: digest.FromString("environment"), Threads: threads, Probes: 8, Now: time.Now(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	tg, err := conformance.Open(s.target(url))
	if err != nil {
		s.t.Fatal(err)
	}
	replay, observations, err := conformance.Replay(s.t.Context(), s.suite, plan, digest.FromString("plan"), tg, conformance.ReplayOptions{Dir: s.t.TempDir(), Clock: time.Now})
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := conformance.Judge(&conformance.Replayed{Suite: s.suite, Plan: plan, PlanDigest: digest.FromString("plan"), Environment: env, Replay: replay, Observations: observations})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// said are the first n different questions of the example's chats.
func said(t *testing.T, n int) (list []string) {
	t.Helper()
	f, err := os.Open("../../../examples/models/assistant/cases.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan() && len(list) < n; {
		var c struct {
			Request struct {
				Messages []struct{ Content string }
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		if text := c.Request.Messages[0].Content; !seen[text] {
			seen[text] = true
			list = append(list, text)
		}
	}
	return list
}

// A suite of embeddings over llama.cpp: the same file certifies on another number
// of threads, which is in the floor; rounded to four bits it is rejected, and as a
// noise endpoint it is refused whatever it says of itself.
func TestLlamaEmbeddingsSuite(t *testing.T) {
	f16, q4 := openai.Rounded(t)
	one, two, coarse := openai.Llama(t, f16), openai.Llama(t, f16, "--threads", "2"), openai.Llama(t, q4, "--threads", "2")
	s := &llamaSuite{t: t, protocol: openai.NameEmbeddings, criteria: attest.Criteria{
		Version: 3, Noise: &attest.NoiseCriteria{Ratio: 4}, Plan: attest.BinomialPlan{Margin: margin, Alpha: 0.05, Beta: 0.2, N: claim},
		Outputs: []attest.OutputCriteria{{Output: "embedding", Absolute: 1e-6, NoiseFactor: 8, Decision: attest.Decision{Kind: attest.DecideNearest, Labels: []string{}}}},
	}}
	for i, text := range said(t, claim+border+4) {
		s.candidates = append(s.candidates, conformance.Candidate{ID: fmt.Sprintf("e-%03d", i), Request: fmt.Appendf(nil, `{"input":%q}`, text)})
	}
	more, err := conformance.FindThreads(t.Context(), s.target(one), two, 0, 0)
	if err != nil || more.Own != 1 || more.Other != 2 || more.DeclaredBy != attest.ByServer {
		t.Fatalf("%+v, %v", more, err)
	}
	if _, err := conformance.FindThreads(t.Context(), s.target(one), coarse, 0, 0); err == nil || !strings.Contains(err.Error(), "not the same but for their threads") {
		t.Errorf("another file: %v", err)
	}
	dishonest := attest.OtherThreads{URL: coarse, Threads: more.Threads}
	if err := s.record(one, &dishonest); err == nil || !strings.Contains(err.Error(), "is taken for noise") {
		t.Errorf("a reference whose noise endpoint is of q4_0: %v", err)
	}
	if err := s.record(one, &more); err != nil {
		t.Fatal(err)
	}
	t.Logf("noise of the reference: %+v", s.suite.Document.Reference.Threads)
	back, err := conformance.FindThreads(t.Context(), s.target(two), one, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := s.replay(two, &back)
	if r.Verdict != attest.Certified || r.Embeddings[0].Vectors != claim+border || r.Probes.Threads.Compared != 8 || !r.Probes.Threads.Benign {
		t.Errorf("on two threads: %s %v, %+v, %+v", r.Verdict, r.Reasons, r.Embeddings, r.Probes)
	}
	t.Log(r.Difference)
	if r := s.replay(coarse, nil); r.Verdict != attest.Rejected || r.Embeddings[0].Exceeding == 0 {
		t.Errorf("q4_0: %s %v, %+v", r.Verdict, r.Reasons, r.Embeddings)
	} else {
		t.Log(r.Difference)
	}
}

// A suite of chats over llama.cpp, each asked streamed and whole, with a noise
// endpoint on either side.
func TestLlamaChatSuite(t *testing.T) {
	f16, q4 := openai.Rounded(t)
	one, two, coarse := openai.Llama(t, f16), openai.Llama(t, f16, "--threads", "2"), openai.Llama(t, q4)
	s := &llamaSuite{t: t, protocol: openai.NameChat, options: `{"dialect":"llama.cpp","defaults":{"max_tokens":2,"logprobs":true,"top_logprobs":2}}`, criteria: attest.Criteria{
		Version: 3, Noise: &attest.NoiseCriteria{Ratio: 4}, Plan: attest.BinomialPlan{Margin: margin, Alpha: 0.05, Beta: 0.2, N: claim}, Outputs: []attest.OutputCriteria{},
		Text: &attest.TextCriteria{Decision: attest.DecideText, Tie: 1e-3, BothWays: true}, Limits: []attest.Limit{{Measure: attest.MeasureLogprob, Margin: 1e-3}},
	}}
	for i, text := range said(t, claim+border+4) {
		s.candidates = append(s.candidates, conformance.Candidate{ID: fmt.Sprintf("c-%03d", i), Request: fmt.Appendf(nil, `{"messages":[{"role":"user","content":%q}]}`, text)})
	}
	more, err := conformance.FindThreads(t.Context(), s.target(one), two, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.record(one, &attest.OtherThreads{URL: coarse, Threads: more.Threads}); err == nil || !strings.Contains(err.Error(), "is taken for noise") {
		t.Errorf("a reference whose noise endpoint is of q4_0: %v", err)
	}
	if err := s.record(one, &more); err != nil {
		t.Fatal(err)
	}
	r := s.replay(one, &more)
	if w := r.Texts.BothWays; r.Verdict != attest.Certified || w == nil || w.Same != claim+border || r.Probes.Threads.Compared != 8 {
		t.Errorf("%s: %v, %+v, %+v", r.Verdict, r.Reasons, w, r.Probes)
	}
	t.Log(r.Difference, r.Probes.Threads)
	if r := s.replay(one, &attest.OtherThreads{URL: coarse, Threads: more.Threads}); r.Verdict != attest.Inconclusive || r.Probes.Threads.Benign {
		t.Errorf("a noise endpoint of q4_0: %s %v", r.Verdict, r.Reasons)
	}
	if r := s.replay(coarse, nil); r.Verdict != attest.Rejected {
		t.Errorf("q4_0: %s %v", r.Verdict, r.Reasons)
	}
}
