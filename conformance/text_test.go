package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// A textBench records a suite of texts from a fake server that behaves, and
// replays it against one that need not.
type textBench struct {
	t       testing.TB
	suite   *Suite
	server  *targettest.OpenAI
	target  attest.Target
	options PlanOptions
}

const textClaim, textBorder = 59, 6

// request is what a case asks: its members are not in canonical order.
func request(i int, more string) json.RawMessage {
	said := "is the answer said the bird"
	if strings.Contains(more, "stream") {
		said = "speaks" // the fake takes a millisecond for each word
	}
	return fmt.Appendf(nil, `{ "messages":[{"role":"user","content":"number %d %s"}]%s}`, i, said, more)
}

func textCandidates(more string) (list []Candidate) {
	for i := range textClaim + textBorder + 5 {
		list = append(list, Candidate{ID: fmt.Sprintf("q-%03d", i), Request: request(i, more), Slice: map[string]string{"odd": fmt.Sprint(i%2 == 1)}})
	}
	return list
}

func textCriteria(text attest.TextCriteria, limits ...attest.Limit) attest.Criteria {
	return attest.Criteria{Version: 2, Noise: &attest.NoiseCriteria{Ratio: 4}, Outputs: []attest.OutputCriteria{}, Text: &text, Limits: limits,
		Plan: attest.BinomialPlan{Margin: 0.05, Alpha: 0.05, Beta: 0.2, N: textClaim}}
}

func newTextBench(t testing.TB, candidates []Candidate, criteria attest.Criteria) *textBench {
	t.Helper()
	return newRequestBench(t, openai.NameChat, candidates, criteria)
}

func newRequestBench(t testing.TB, protocol string, candidates []Candidate, criteria attest.Criteria) *textBench {
	t.Helper()
	// What the fake asks for when it is rate-limited is not waited for: these tests
	// are about its answers.
	b := &textBench{t: t, server: targettest.NewOpenAI(t), options: PlanOptions{MaxWait: -1}}
	b.target = attest.Target{Protocol: protocol, URL: b.server.URL + "/v1", Model: "parrot", Version: "parrot-2026-03-01"}
	tg, err := Open(b.target)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	opt := RecordOptions{Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: b.target, Candidates: candidates,
		Claim: criteria.Plan.N, Border: textBorder, Criteria: criteria, DataClassification: "synthetic", Clock: time.Now, Progress: func(n int) { asked += n }}
	b.suite, err = Record(context.Background(), tg, opt)
	if err != nil {
		t.Fatal(err)
	}
	if asked != opt.Requests() {
		t.Errorf("%d requests, and %d were foreseen", asked, opt.Requests())
	}
	return b
}

// replay replays the suite against the bench's server.
func (b *textBench) replay(misbehave func(n int) string) *Replayed {
	b.t.Helper()
	b.server.SetMisbehave(misbehave)
	suite, criteria, err := b.suite.digests()
	if err != nil {
		b.t.Fatal(err)
	}
	opt := b.options
	opt.Model, opt.Suite, opt.SuiteDigest, opt.CriteriaDigest = digest.FromString("model"), b.suite, suite, criteria
	opt.Environment = attest.Environment{Name: "prod", Target: b.target, Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: time.Now().UTC()}
	opt.EnvironmentDigest, opt.Timeout, opt.Now = digest.FromString("environment"), 5*time.Second, time.Now()
	plan, err := NewPlan(opt)
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := PlanArtifact(plan, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("model"), Size: 1})
	if err != nil {
		b.t.Fatal(err)
	}
	tg, err := Open(b.target)
	if err != nil {
		b.t.Fatal(err)
	}
	replay, observations, err := Replay(context.Background(), b.suite, plan, a.Descriptor.Digest, tg, ReplayOptions{Dir: b.t.TempDir(), Clock: time.Now})
	if err != nil {
		b.t.Fatal(err)
	}
	return &Replayed{Suite: b.suite, Plan: plan, PlanDigest: a.Descriptor.Digest, Environment: opt.Environment, Replay: replay, Observations: observations}
}

// after misbehaves from the first case on: the questions of the pre-flight are
// answered well.
func (b *textBench) after(fault string, which func(n int) bool) func(n int) string {
	b.server.SetMisbehave(nil)
	first := b.preflight()
	base := 0
	var once sync.Once
	return func(n int) string {
		once.Do(func() { base = n })
		if n-base >= first && which(n-base-first) {
			return fault
		}
		return ""
	}
}

// preflight is how many questions come before the first case.
func (b *textBench) preflight() int {
	tg, err := Open(b.target)
	if err != nil {
		b.t.Fatal(err)
	}
	before := b.server.Requests()
	for _, c := range preflight(context.Background(), b.suite, attest.Plan{Target: b.target, TimeoutMillis: 5000}, tg) {
		if !c.Passed {
			b.t.Fatalf("pre-flight: %+v", c)
		}
	}
	return b.server.Requests() - before
}

func every(n int) bool  { return true }
func fourth(n int) bool { return n == 3 }

var withLogprobs = `, "logprobs":true,"top_logprobs":2`

func TestTextsAreCertified(t *testing.T) {
	for name, tc := range map[string]struct {
		more string
		text attest.TextCriteria
	}{
		"exact text":          {"", attest.TextCriteria{Decision: attest.DecideText}},
		"exact text, stream":  {`,"stream":true`, attest.TextCriteria{Decision: attest.DecideText}},
		"exact text, choices": {`,"n":3`, attest.TextCriteria{Decision: attest.DecideText}},
		"answer":              {"", attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `is (\d+) number`}},
		"first token":         {withLogprobs, attest.TextCriteria{Decision: attest.DecideToken}},
	} {
		t.Run(name, func(t *testing.T) {
			var limits []attest.Limit
			if tc.more == withLogprobs {
				limits = []attest.Limit{{Measure: attest.MeasureEdit, Margin: 0.01}, {Measure: attest.MeasureLogprob, Margin: 0.01}}
			}
			b := newTextBench(t, textCandidates(tc.more), textCriteria(tc.text, limits...))
			r := judged(t, b.replay(nil))
			if r.Verdict != attest.Certified || r.Cases.Compared != textClaim+textBorder || r.Texts == nil || r.Texts.Same != r.Texts.Choices || r.Texts.Earliest != -1 || r.Probes.Used != 32 {
				t.Fatalf("%s: %v, %+v, %+v", r.Verdict, r.Reasons, r.Cases, r.Texts)
			}
			if tc.more == withLogprobs && (r.Texts.Tokens == 0 || len(r.Gates[1].Hypotheses) != 5) {
				t.Errorf("%+v, %+v", r.Texts, r.Gates[1])
			}
		})
	}
}

// Whatever is wrong with answers is never certified, and says which it is.
func TestTextFaults(t *testing.T) {
	answers := newTextBench(t, textCandidates(withLogprobs), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	streams := newTextBench(t, textCandidates(`,"stream":true`), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	streams.options.Concurrency = 8
	choices := newTextBench(t, textCandidates(`,"n":2`), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	for fault, tc := range map[string]struct {
		b    *textBench
		want attest.Verdict
		// class is what the report counts it as.
		class string
	}{
		"error-in-200":     {answers, attest.Rejected, "error-in-200"},
		"cached":           {answers, attest.Rejected, "cached"},
		"no-model":         {answers, attest.Rejected, "wrong-model"},
		"wrong-model":      {answers, attest.Rejected, "wrong-version"},
		"nan":              {answers, attest.Rejected, "not-finite"},
		"null-logprob":     {answers, attest.Rejected, "not-finite"},
		"no-logprobs":      {answers, attest.Rejected, "ignored"},
		"no-finish":        {answers, attest.Rejected, "truncated"},
		"truncated":        {answers, attest.Inconclusive, "truncated"},
		"close":            {answers, attest.Inconclusive, "connection"},
		"http-429":         {answers, attest.Inconclusive, "http"},
		"http-500":         {answers, attest.Inconclusive, "http"},
		"drop-choice":      {choices, attest.Rejected, "ignored"},
		"extra-choice":     {choices, attest.Rejected, "extra-output"},
		"silent-canary":    {answers, attest.Rejected, ""},
		"error-in-stream":  {streams, attest.Rejected, "error-in-200"},
		"no-done":          {streams, attest.Rejected, "truncated"},
		"canary-in-stream": {streams, attest.Rejected, "wrong-version"},
		"lost-token":       {streams, attest.Rejected, ""},
	} {
		t.Run(fault, func(t *testing.T) {
			r := judged(t, tc.b.replay(tc.b.after(fault, fourth)))
			if r.Verdict != tc.want || len(r.Reasons) == 0 {
				t.Errorf("%s: %v, want %s", r.Verdict, r.Reasons, tc.want)
			}
			if n := r.Errors[tc.class]; tc.class != "" && n != 1 {
				t.Errorf("%d of class %s: %v", n, tc.class, r.Errors)
			}
			if tc.class == "" && (r.Power.Observed+r.Border.Flips != 1 || r.Texts.Diverging != 1 || r.Texts.Earliest < 0) {
				t.Errorf("%d and %d flips, %+v", r.Power.Observed, r.Border.Flips, r.Texts)
			}
		})
	}
}

// A text may differ where its answer does not, and limits see that.
func TestTextsThatDifferAndAnswerTheSame(t *testing.T) {
	answer := attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `is (\d+) number`}
	b := newTextBench(t, textCandidates(""), textCriteria(answer))
	r := judged(t, b.replay(b.after("silent-canary", every)))
	if r.Verdict != attest.Certified || r.Texts.Diverging != textClaim+textBorder || r.Texts.Earliest != 0+1 || r.Texts.Completion != textClaim+textBorder {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Texts)
	}
	b = newTextBench(t, textCandidates(""), textCriteria(answer, attest.Limit{Measure: attest.MeasureEdit, Margin: 0.01}))
	r = judged(t, b.replay(b.after("silent-canary", every)))
	if r.Verdict != attest.Rejected || !strings.Contains(r.Reasons[0], "edit-distance") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
	// And by the first token it is another answer in every case.
	b = newTextBench(t, textCandidates(withLogprobs), textCriteria(attest.TextCriteria{Decision: attest.DecideToken}, attest.Limit{Measure: attest.MeasureLogprob, Margin: 0.5}))
	r = judged(t, b.replay(b.after("silent-canary", every)))
	if r.Verdict != attest.Rejected || r.Power.Observed != textClaim || !strings.Contains(strings.Join(r.Reasons, ";"), "logprob-difference cannot be judged: 59 texts") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// Whoever answers otherwise when asked again is found out by the probes alone.
func TestANoisyTextEnvironment(t *testing.T) {
	b := newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	r := judged(t, b.replay(b.after("silent-canary", func(n int) bool { return n >= textClaim+textBorder && n%2 == 0 })))
	if r.Verdict != attest.Rejected || r.Texts.Unstable == 0 || r.Power.Observed != 0 || !strings.Contains(r.Reasons[0], "noisier than the reference") {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Texts)
	}
}

func TestTextDecisions(t *testing.T) {
	tool := `{"tools":[{"function":{"name":"pay","parameters":{"type":"object","properties":{"sum":{"type":"number"}},"required":["sum"]}}},{"function":{"name":"wait"}}]}`
	say := func(s string) attest.TextChoice { return attest.TextChoice{Text: s, FinishReason: "stop"} }
	call := func(name, arguments string) attest.TextChoice {
		return attest.TextChoice{FinishReason: "tool_calls", ToolCalls: []attest.TextToolCall{{Name: name, Arguments: arguments}}}
	}
	token := func(s string) attest.TextChoice {
		return attest.TextChoice{Text: s, FinishReason: "stop", Tokens: []attest.TextToken{{Token: s, Logprob: -1}}}
	}
	exact, tools, first := attest.TextCriteria{Decision: attest.DecideText}, attest.TextCriteria{Decision: attest.DecideToolCalls}, attest.TextCriteria{Decision: attest.DecideToken}
	answer, pointer := attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `= *(\S+)`}, attest.TextCriteria{Decision: attest.DecideAnswer, Pointer: "/sum"}
	for _, tc := range []struct {
		c         attest.TextCriteria
		want, got attest.TextChoice
		flip      bool
	}{
		{exact, say("a"), say("a"), false},
		{exact, say("a"), say("a "), true},
		{exact, say("a"), attest.TextChoice{Text: "a", FinishReason: "length"}, true},
		{exact, say("a"), attest.TextChoice{Text: "a", Refusal: "no", FinishReason: "stop"}, true},
		{exact, call("pay", `{"sum":1,"to":2}`), call("pay", `{ "to":2, "sum":1.0}`), false},
		{exact, call("pay", `{"sum":1}`), call("pay", `{"sum":2}`), true},
		{answer, say("x = 4"), say("so it is = 4"), false},
		{answer, say("x = 4"), say("x = 5, so it is = 4"), false},
		{answer, say("x = 4"), say("x = 5"), true},
		{answer, say("x = 4"), say("I cannot say"), true},
		{pointer, say(`{"sum":1}`), say(`{"why":"x","sum":1.0}`), false},
		{pointer, say(`{"sum":1}`), say(`{"sum":"1"}`), true},
		{pointer, say(`{"sum":1}`), say(`{"sum":1`), true},
		{pointer, say(`{"sum":1}`), say(`{"total":1}`), true},
		{tools, call("pay", `{"sum":1}`), call("pay", `{"sum": 1}`), false},
		{tools, call("wait", `{}`), call("wait", `{ }`), false},
		{tools, call("pay", `{"sum":1}`), call("pay", `{"sum":2}`), true},
		{tools, call("pay", `{"sum":1}`), call("wait", `{"sum":1}`), true},
		{tools, call("pay", `{"sum":1}`), say("I pay"), true},
		{tools, call("pay", `{"sum":1}`), call("pay", `{"sum":`), true},
		{tools, say("I do not pay"), say("I will not"), false},
		{tools, say("I do not pay"), call("pay", `{"sum":1}`), true},
		{first, token("yes"), token("yes"), false},
		{first, token("yes"), token("no"), true},
		{first, token("yes"), say("yes"), true},
	} {
		d, err := newDecider(tc.c)
		if err != nil {
			t.Fatal(err)
		}
		p, err := d.pair(tool, []attest.TextChoice{tc.want}, []attest.TextChoice{tc.got})
		if err != nil && tc.got.Text != "yes" {
			t.Errorf("%s: %v", tc.c.Decision, err)
		}
		if err == nil && (p.flip >= 0) != tc.flip {
			t.Errorf("%s: %+v and %+v: flip %v, want %v", tc.c.Decision, tc.want, tc.got, p.flip >= 0, tc.flip)
		}
	}
	// What has no decision to read off cannot be golden.
	for _, tc := range []struct {
		c    attest.TextCriteria
		want attest.TextChoice
	}{{answer, say("I cannot say")}, {pointer, say("four")}, {tools, call("pay", `{"sum":"much"}`)}, {tools, call("steal", `{}`)}, {first, say("yes")}} {
		d, _ := newDecider(tc.c)
		if err := d.golden(attest.Text{Request: tool, Choices: []attest.TextChoice{tc.want}}); err == nil {
			t.Errorf("%s: %+v is golden", tc.c.Decision, tc.want)
		}
	}
	// Choices are paired by index. The same ones in another order are no answer.
	d, _ := newDecider(exact)
	if _, err := d.pair(tool, []attest.TextChoice{say("a"), say("b")}, []attest.TextChoice{say("b"), say("a")}); err == nil || !strings.HasPrefix(err.Error(), "reordered") {
		t.Errorf("%v", err)
	}
	if p, err := d.pair(tool, []attest.TextChoice{say("a"), say("b")}, []attest.TextChoice{say("a"), say("a")}); err != nil || p.flip != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := d.pair(tool, []attest.TextChoice{say("a"), say("b")}, []attest.TextChoice{say("a")}); err == nil || !strings.HasPrefix(err.Error(), "missing-output") {
		t.Errorf("%v", err)
	}
}

// A suite of texts is the same after it was stored, and its requests are sent as
// they were written.
func TestTextSuiteArtifact(t *testing.T) {
	b := newTextBench(t, textCandidates(withLogprobs), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	again := stored(t, b.suite)
	if len(again.Texts) != textClaim+textBorder {
		t.Fatalf("%d texts", len(again.Texts))
	}
	for id, x := range b.suite.Texts {
		if y := again.Texts[id]; x.Request != y.Request || !strings.HasPrefix(x.Request, `{ "messages"`) || fmt.Sprint(x) == "" || len(y.Choices[0].Tokens) == 0 {
			t.Errorf("%+v is read as %+v", x, y)
		}
	}
	a, err := b.suite.Artifact()
	if err != nil {
		t.Fatal(err)
	}
	c, err := again.Artifact()
	if err != nil || a.Descriptor.Digest != c.Descriptor.Digest {
		t.Errorf("%s is %s when it is written again (%v)", a.Descriptor.Digest, c.Descriptor.Digest, err)
	}
	// Sealed: what is pushed does not have the text, and the sealed part does.
	id := b.suite.Cases[3].ID
	part, err := b.suite.Seal(map[string]bool{id: true}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	closed := stored(t, b.suite)
	if _, ok := closed.Texts[id]; ok || closed.Closed() != 1 {
		t.Errorf("the text of the sealed case is there")
	}
	if err := closed.Open(bytes.Replace(part, []byte("the answer"), []byte("an answer"), 1)); err == nil {
		t.Error("another text was opened")
	}
	if err := closed.Open(part); err != nil || closed.Texts[id].Request != b.suite.Texts[id].Request {
		t.Errorf("%v", err)
	}
	// A suite whose parts do not fit together is none.
	for want, change := range map[string]func(*Suite){
		"has no request":        func(s *Suite) { delete(s.Texts, s.Cases[0].ID) },
		"requests of 66 cases":  func(s *Suite) { s.Texts["more"] = s.Texts[s.Cases[0].ID] },
		"criteria of texts are": func(s *Suite) { s.Criteria.Text, s.Criteria.Outputs = nil, criteria(textClaim, 0).Outputs },
		"no extracted-answer ca": func(s *Suite) {
			s.Criteria.Text = &attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: "(bells)"}
		},
	} {
		s := stored(t, newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText})).suite)
		change(s)
		if err := s.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// stored writes a suite and reads it.
func stored(t *testing.T, s *Suite) *Suite {
	t.Helper()
	a, err := s.Artifact()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadSuite(context.Background(), func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
		if d.Digest == a.Descriptor.Digest {
			return a.Manifest, nil
		}
		i := slices.IndexFunc(a.Blobs, func(b Blob) bool { return b.Descriptor.Digest == d.Digest })
		return a.Blobs[i].Data, nil
	}, a.Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// What a model said is shown to people as text, whatever it is.
func TestTextReportEscapes(t *testing.T) {
	var candidates []Candidate
	for i := range textClaim + textBorder {
		candidates = append(candidates, Candidate{ID: fmt.Sprintf("q-%03d", i), Request: fmt.Appendf(nil, `{"messages":[{"role":"user","content":"<script>alert(%d)</script> \u001b[31mred"}]}`, i)})
	}
	b := newTextBench(t, candidates, textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	r := judged(t, b.replay(b.after("silent-canary", every)))
	if r.Verdict != attest.Rejected {
		t.Fatalf("%s: %v", r.Verdict, r.Reasons)
	}
	for form, bad := range map[string][]string{"html": {"<script>", "\x1b"}, "txt": {"\x1b"}, "xml": {"\x1b"}} {
		var page bytes.Buffer
		if err := WriteForm(&page, form, r); err != nil {
			t.Fatal(err)
		}
		for _, s := range bad {
			if strings.Contains(page.String(), s) {
				t.Errorf("there is %q in %s", s, form)
			}
		}
		if form != "xml" && !strings.Contains(page.String(), "from character") {
			t.Errorf("%s does not say where texts part:\n%.3000s", form, page.String())
		}
	}
}

// Another number of tokens in the prompt is another tokenizer or template, even
// where the answer is the same.
func TestPromptTokens(t *testing.T) {
	for name, change := range map[string]func(*attest.TextUsage){"another": func(u *attest.TextUsage) { u.Prompt++ }, "the answer's": func(u *attest.TextUsage) { u.Completion++ }} {
		b := newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
		change(b.suite.Texts[b.suite.Cases[0].ID].Usage)
		r := judged(t, b.replay(nil))
		if name == "another" && (r.Verdict != attest.Rejected || r.Errors["prompt-tokens"] != 1) {
			t.Errorf("%s: %v, %v", r.Verdict, r.Reasons, r.Errors)
		}
		// Those of an answer that is the same are counted, and no more.
		if name != "another" && (r.Verdict != attest.Certified || r.Texts.Completion != 1) {
			t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Texts)
		}
	}
}
