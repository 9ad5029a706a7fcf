package conformance

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/verify/attest"
)

// A pace is when a streamed answer comes: its first piece, and each of four more.
type pace struct{ first, each time.Duration }

// streamed is a replay of n streamed texts whose bytes came at the pace that is
// said of each: what a wire would have to be slow for, and a record need not.
func streamed(t testing.TB, n int, limits []attest.Limit, of func(i int) pace) *Replayed {
	t.Helper()
	c := textCriteria(attest.TextCriteria{Decision: attest.DecideText}, limits...)
	c.Version, c.Plan.N = 3, n
	c.Plan.Margin = 0.2
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := &Suite{Criteria: c, Texts: map[string]attest.Text{}}
	s.Document = attest.Suite{
		Name: "streams", Kind: attest.KindTexts, Model: attest.ResourceOf("", digest.FromString("model")), Protocol: openai.NameChat, DataClassification: "synthetic",
		Inputs: []attest.TensorSpec{}, Outputs: []attest.TensorSpec{}, Claim: n, CreatedAt: at,
		Reference: attest.Reference{ServedModel: "m", RecordedAt: at, Noise: map[string]float64{attest.NoiseDecision: 0, attest.NoiseEdit: 0, attest.NoiseLogprob: 0}},
	}
	to := attest.Target{Protocol: openai.NameChat, URL: "http://127.0.0.1:1/v1", Model: "m"}
	for i := range n {
		id := fmt.Sprintf("q-%04d", i)
		s.Cases = append(s.Cases, attest.Case{ID: id, Stratum: attest.StratumClaim, Request: "sha256:" + strings.Repeat("0", 64)})
		s.Texts[id] = attest.Text{ID: id, Request: fmt.Sprintf(`{"messages":[{"role":"user","content":"%d"}],"stream":true}`, i), Choices: []attest.TextChoice{{Text: "one two three four five", FinishReason: "stop"}}}
	}
	a, err := s.Artifact()
	if err != nil {
		t.Fatal(err)
	}
	env := attest.Environment{Name: "prod", Target: to, Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: at}
	plan, err := NewPlan(PlanOptions{Model: digest.FromString("model"), Suite: s, SuiteDigest: a.Descriptor.Digest, CriteriaDigest: digest.FromBytes(a.file(fileCriteria)),
		Environment: env, EnvironmentDigest: digest.FromString("env"), Now: at})
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlanArtifact(plan, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("model"), Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	r := &Replayed{Suite: s, Plan: plan, PlanDigest: p.Descriptor.Digest, Environment: env}
	protocol, err := protocolOf(to)
	if err != nil {
		t.Fatal(err)
	}
	sent := at.Add(time.Second)
	add := func(id, kind string, request []byte, p pace) {
		o := attest.Observation{Case: id, Attempt: 1, Probe: kind, Request: string(digest.FromBytes(request)), SentAt: sent, Status: 200, Header: map[string]string{"Content-Type": "text/event-stream"}}
		after := time.Duration(0)
		event := func(wait time.Duration, data string) {
			after += wait
			o.Response = append(append(append(o.Response, "data: "...), data...), "\n\n"...)
			o.Arrivals = append(o.Arrivals, attest.Arrival{Bytes: len(o.Response), Micros: after.Microseconds()})
		}
		event(0, `{"id":"1","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`)
		for k, word := range []string{"one", " two", " three", " four", " five"} {
			wait := p.each
			if k == 0 {
				wait = p.first
			}
			event(wait, fmt.Sprintf(`{"id":"1","model":"m","choices":[{"index":0,"delta":{"content":%q}}]}`, word))
		}
		event(0, `{"id":"1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`)
		event(0, `{"id":"1","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}`)
		event(0, "[DONE]")
		o.ReceivedAt = sent.Add(after)
		r.Observations = append(r.Observations, o)
	}
	for i, c := range s.Cases {
		q, _, _ := s.question(c, to)
		request, err := protocol.Encode(q)
		if err != nil {
			t.Fatal(err)
		}
		add(c.ID, "", request, of(i))
	}
	probes, err := s.probes(plan, protocol)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range probes {
		add(p.cases[0].ID, p.kind, p.request, pace{time.Millisecond, time.Millisecond})
	}
	r.Replay = attest.Replay{Plan: attest.ResourceOf(attest.PlanType, r.PlanDigest), Model: plan.Model, Environment: plan.Environment, StartedAt: at, FinishedAt: at.Add(time.Hour), Observations: len(r.Observations),
		Preflight: []attest.PreflightCheck{{Name: "answers", Passed: true}}}
	return r
}

func TestPaceOfStreams(t *testing.T) {
	limits := []attest.Limit{{Measure: attest.MeasureFirstToken, Margin: 100}, {Measure: attest.MeasureToken, Margin: 10}}
	good := pace{50 * time.Millisecond, 5 * time.Millisecond}
	for name, tc := range map[string]struct {
		n      int
		of     func(i int) pace
		want   attest.Verdict
		reason string
	}{
		"as fast as it has to be": {368, func(int) pace { return good }, attest.Certified, ""},
		"a slow first token": {368, func(i int) pace {
			if i%10 == 0 {
				return pace{150 * time.Millisecond, 0}
			}
			return good
		}, attest.Rejected, "37 of 368 first tokens took more than 100 ms"},
		"slow tokens after a fast first one": {368, func(i int) pace {
			if i%10 == 0 {
				return pace{0, 11 * time.Millisecond}
			}
			return good
		}, attest.Rejected, "37 of 368 answers' tokens took more than 10 ms"},
		"one in three hundred": {368, func(i int) pace {
			if i == 7 {
				return pace{150 * time.Millisecond, 0}
			}
			return good
		}, attest.Inconclusive, "1 of 368 took longer or never came"},
	} {
		t.Run(name, func(t *testing.T) {
			r := judged(t, streamed(t, tc.n, limits, tc.of))
			if r.Verdict != tc.want || tc.reason != "" && !strings.Contains(strings.Join(r.Reasons, "; "), tc.reason) {
				t.Errorf("%s: %v", r.Verdict, r.Reasons)
			}
			if l := r.Latency; l == nil || l.FirstToken == nil || l.PerToken == nil || l.FirstToken.Answers != tc.n || l.PerToken.Answers != tc.n || len(l.FirstToken.Bins) == 0 {
				t.Fatalf("%+v", l)
			}
			if name == "as fast as it has to be" && (r.Latency.FirstToken.P50/1000 != 50 || r.Latency.PerToken.P99/1000 != 5 || r.Latency.P50/1000 != 70 || len(r.Gates) != 4 || len(r.Gates[3].Hypotheses) != 2) {
				t.Errorf("%+v, %+v, %+v", r.Latency, r.Latency.FirstToken, r.Gates)
			}
			for form, want := range map[string]string{"html": "To the first token, from when a question was sent", "txt": "latency, from one token to the next: p50", "xml": "latency: slow-token, over 10 ms, p"} {
				var out bytes.Buffer
				if err := WriteForm(&out, form, r); err != nil || !strings.Contains(out.String(), want) {
					t.Errorf("%s has no %q: %v", form, want, err)
				}
			}
		})
	}
	// An answer that never came is not fast, and is not shown to be slow.
	r := streamed(t, 368, limits, func(int) pace { return good })
	r.Observations[4].Header, r.Observations[4].Arrivals = nil, nil
	r.Observations[4].Error, r.Observations[4].Response, r.Observations[4].Status = &attest.ObservationError{Class: "timeout", Message: "30 s"}, nil, 0
	if got := judged(t, r); got.Verdict != attest.Inconclusive || got.Gates[3].Hypotheses[1].Value != "1" {
		t.Errorf("%s: %+v", got.Verdict, got.Gates[3])
	}
	// The schedule counts: a question that was sent late has a late first token.
	r = streamed(t, 368, limits, func(int) pace { return good })
	for i := range r.Observations {
		due := r.Observations[i].SentAt.Add(-60 * time.Millisecond)
		r.Observations[i].DueAt = &due
	}
	if got := judged(t, r); got.Verdict != attest.Rejected || !strings.Contains(got.Reasons[0], "368 of 368 first tokens") {
		t.Errorf("%s: %v", got.Verdict, got.Reasons)
	}
}

// What is not streamed has no first token, and that is said before anything is
// asked.
func TestPaceNeedsStreams(t *testing.T) {
	r := streamed(t, 20, nil, func(int) pace { return pace{} })
	id := r.Suite.Cases[5].ID
	x := r.Suite.Texts[id]
	x.Request = strings.Replace(x.Request, `"stream":true`, `"stream":false`, 1)
	r.Suite.Texts[id] = x
	r.Suite.Criteria.Plan = attest.BinomialPlan{Margin: 0.2, Alpha: 0.05, Beta: 0.2, N: 20}
	if err := r.Suite.check(); err != nil {
		t.Fatal(err)
	}
	r.Suite.Criteria.Limits = []attest.Limit{{Measure: attest.MeasureToken, Margin: 1}}
	if err := r.Suite.check(); err == nil || !strings.Contains(err.Error(), "case q-0005 is not streamed") {
		t.Errorf("%v", err)
	}
	// With fewer cases nobody could be fast enough.
	x.Request = strings.Replace(x.Request, `"stream":false`, `"stream":true`, 1)
	r.Suite.Texts[id] = x
	if err := r.Suite.check(); err == nil || !strings.Contains(err.Error(), "take at least 299 cases to be shown, and the suite has 20") {
		t.Errorf("%v", err)
	}
	for name, c := range map[string]attest.Criteria{
		"of tensors": func() attest.Criteria {
			c := criteria(59, 0)
			c.Version, c.Noise, c.Limits = 3, &attest.NoiseCriteria{Ratio: 1}, []attest.Limit{{Measure: attest.MeasureFirstToken, Margin: 1}}
			return c
		}(),
		"of version 2": textCriteria(attest.TextCriteria{Decision: attest.DecideText}, attest.Limit{Measure: attest.MeasureFirstToken, Margin: 1}),
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("criteria %s have a limit on first tokens", name)
		}
	}
	// A real stream has its times, and a suite of version 2 does not speak of them.
	b := newTextBench(t, textCandidates(`,"stream":true`), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	b.options.Concurrency = 8
	replayed := b.replay(nil)
	if got := judged(t, replayed); got.Latency.FirstToken != nil {
		t.Errorf("%+v", got.Latency)
	}
	b.suite.Criteria.Version = 3
	if got := judged(t, replayed); got.Latency.FirstToken == nil || got.Latency.FirstToken.P50 >= got.Latency.P50 || got.Latency.PerToken.P50 < 500 {
		t.Errorf("%+v, %+v", got.Latency, got.Latency.FirstToken)
	}
}
