package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/verify/attest"
)

// waysBench records a suite of which every case is asked streamed and whole; more
// are further members of its requests.
func waysBench(t testing.TB, more string, text attest.TextCriteria) *textBench {
	c := textCriteria(text)
	c.Version, c.Text.BothWays = 3, true
	b := newTextBench(t, toolCandidates(more), c)
	b.options.Concurrency = 8
	return b
}

// toolCandidates have a tool, which a third of them call.
func toolCandidates(more string) (list []Candidate) {
	for i := range textClaim + textBorder + 5 {
		said := fmt.Sprintf("number %d speaks", i)
		if i%3 == 0 {
			said = "weather in " + strings.Repeat(string(rune('a'+i%26)), 1+i/26)
		}
		request := fmt.Appendf(nil, `{"messages":[{"role":"user","content":%q}],"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]%s}`, said, more)
		list = append(list, Candidate{ID: fmt.Sprintf("q-%03d", i), Request: request})
	}
	return list
}

const all = textClaim + textBorder

// Every case is asked the other way too: the plan says so, it is counted as a
// request, and the answers are the same.
func TestBothWays(t *testing.T) {
	for _, more := range []string{`,"stream":true`, `,"n":2,"logprobs":true,"top_logprobs":2`} {
		b := waysBench(t, more, attest.TextCriteria{Decision: attest.DecideText})
		before := b.server.Requests()
		replayed := b.replay(nil)
		r := judged(t, replayed)
		w := r.Texts.BothWays
		if r.Verdict != attest.Certified || w == nil || w.Planned != all || w.Compared != all || w.Same != all || len(w.Differ) != 0 {
			t.Fatalf("%s: %s %v, %+v", more, r.Verdict, r.Reasons, w)
		}
		if n, err := Questions(b.suite, replayed.Plan); err != nil || n != 2*all+32 || len(replayed.Observations) != n || b.server.Requests()-before < n || replayed.Plan.BothWays != all {
			t.Errorf("%s: %d questions, %d observations, %d requests, %v", more, n, len(replayed.Observations), b.server.Requests()-before, err)
		}
		if r.Probes.Planned != 32 || r.Probes.Used != 32 {
			t.Errorf("%s: they are no noise probes: %+v", more, r.Probes)
		}
		streams := 0
		for _, o := range replayed.Observations {
			if strings.HasPrefix(string(o.Response), "data:") {
				streams++
			}
		}
		if want := map[bool]int{false: all, true: all + 32}[strings.Contains(more, "stream")]; streams != want {
			t.Errorf("%s: %d of %d answers were streamed, %d should have been", more, streams, len(replayed.Observations), want)
		}
		var out strings.Builder
		WriteReport(&out, r)
		if want := fmt.Sprintf("texts: %d of %d cases compared streamed and whole, %d the same", all, all, all); !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// A stream that differs from the whole in one thing is never certified, and says
// in which.
func TestStreamsThatDiffer(t *testing.T) {
	plain := waysBench(t, "", attest.TextCriteria{Decision: attest.DecideText})
	streamed := waysBench(t, `,"stream":true`, attest.TextCriteria{Decision: attest.DecideText})
	tokens := waysBench(t, `,"logprobs":true,"top_logprobs":2`, attest.TextCriteria{Decision: attest.DecideText})
	// Whatever the decision is about, the text has to be the same.
	answers := newTextBench(t, textCandidates(""), func() attest.Criteria {
		c := textCriteria(attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `is (\d+) number`, BothWays: true})
		c.Version = 3
		return c
	}())
	answers.options.Concurrency = 8
	for name, tc := range map[string]struct {
		b     *textBench
		fault string
		class string
		cases int // of how many it is so; 0 is of some
	}{
		"text":                       {plain, "stream-lost-token", "stream-text", 0},
		"text, when it was streamed": {streamed, "whole-silent-canary", "stream-text", 0},
		"text, and not the answer":   {answers, "stream-silent-canary", "stream-text", all},
		"tool calls":                 {plain, "stream-other-call", "stream-tool-calls", 0},
		"a call that is lost":        {plain, "stream-no-call", "stream-tool-calls", 0},
		"usage":                      {plain, "stream-usage-more", "stream-usage", all},
		"finish reason":              {plain, "stream-finish-length", "stream-finish-reason", all},
		"refusal":                    {plain, "stream-refuses", "stream-refusal", 0},
		"log probabilities":          {tokens, "stream-other-tokens", "stream-logprobs", 0},
		"no answer, one way":         {plain, "stream-error-in-stream", "error-in-200", 0},
		"an ignored parameter":       {plain, "stream-ignore-stream", "ignored", all},
	} {
		t.Run(name, func(t *testing.T) {
			r := judged(t, tc.b.replay(tc.b.after(tc.fault, every)))
			w := r.Texts.BothWays
			n := w.Differ[tc.class]
			if r.Verdict != attest.Rejected || len(w.Differ) != 1 || n == 0 || tc.cases != 0 && n != tc.cases || w.Same != all-n ||
				!strings.Contains(strings.Join(r.Reasons, "; "), "cases are answered otherwise streamed than whole ("+tc.class+": ") {
				t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, w)
			}
			if !slices.ContainsFunc(r.Examples, func(e attest.Example) bool { return e.What == tc.class && e.Detail != "" }) {
				t.Errorf("no example of it: %+v", r.Examples)
			}
			if r.Gates[0].Passed {
				t.Errorf("%+v", r.Gates[0])
			}
			// It is the stream alone: what the cases themselves are judged by is well.
			if r.Cases.Wrong+r.Cases.Failed > 0 || len(r.Flips) > 0 {
				t.Errorf("%+v, %+v", r.Cases, r.Flips)
			}
		})
	}
}

// What cannot be told from the noise of asking again is no certificate either; nor
// is what was not asked.
func TestBothWaysThatCannotBeTold(t *testing.T) {
	b := waysBench(t, "", attest.TextCriteria{Decision: attest.DecideText})
	b.suite.Document.Reference.Noise[attest.NoiseEdit] = 0.1 // its texts change when it is asked again
	r := judged(t, b.replay(b.after("stream-lost-token", every)))
	if r.Verdict != attest.Inconclusive || !strings.Contains(strings.Join(r.Reasons, "; "), "whether it is the stream is not known") {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
	if r := judged(t, b.replay(b.after("stream-usage-more", every))); r.Verdict != attest.Rejected {
		t.Errorf("how it counts does not change: %s %v", r.Verdict, r.Reasons)
	}
	b.suite.Document.Reference.Noise[attest.NoiseEdit] = 0
	r = judged(t, b.replay(b.after("stream-close", every)))
	if r.Verdict != attest.Inconclusive || r.Texts.BothWays.Compared != 0 || !strings.Contains(strings.Join(r.Reasons, "; "), "65 of 65 cases were not compared streamed and whole") {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Texts.BothWays)
	}
	// Taken out of the record, or not planned.
	replayed := b.replay(nil)
	if r := judged(t, replayed); r.Verdict != attest.Certified {
		t.Fatalf("%s: %v", r.Verdict, r.Reasons)
	}
	less := *replayed
	less.Observations = slices.Clone(replayed.Observations)
	i := slices.IndexFunc(less.Observations, func(o attest.Observation) bool { return o.Probe == attest.ProbeOtherWay })
	less.Observations = slices.Delete(less.Observations, i, i+1)
	less.Replay.Observations--
	if r := judged(t, &less); r.Verdict != attest.Inconclusive {
		t.Errorf("without one: %s %v", r.Verdict, r.Reasons)
	}
	less = *replayed
	less.Plan.BothWays = 0
	less.Observations = slices.DeleteFunc(slices.Clone(replayed.Observations), func(o attest.Observation) bool { return o.Probe == attest.ProbeOtherWay })
	less.Replay.Observations = len(less.Observations)
	if r := judged(t, &less); r.Verdict != attest.Inconclusive || !strings.Contains(strings.Join(r.Reasons, "; "), "the plan for 0 of 65") {
		t.Errorf("a plan without: %s %v", r.Verdict, r.Reasons)
	}
}

// A plan can ask a share of the cases of any suite both ways.
func TestSomeCasesBothWays(t *testing.T) {
	b := newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	b.options.BothWays = 10
	r := judged(t, b.replay(nil))
	if w := r.Texts.BothWays; r.Verdict != attest.Certified || w == nil || w.Planned != 10 || w.Same != 10 {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, w)
	}
	// It is in the budget.
	b.options.MaxTokens = 1 << 20
	with := judged(t, b.replay(nil)).Traffic
	b.options.BothWays = 0
	without := judged(t, b.replay(nil)).Traffic
	if with.Requests != without.Requests+10 || with.Tokens <= without.Tokens {
		t.Errorf("with them %+v, without %+v", with, without)
	}
}

// What cannot be asked both ways is refused before anything is asked.
func TestWaysThatThereAreNot(t *testing.T) {
	b := newTextBench(t, textCandidates(`,"temperature":0.5`), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	b.suite.Criteria.Version, b.suite.Criteria.Text.BothWays = 3, true
	tg, err := Open(b.target)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Record(t.Context(), tg, RecordOptions{Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: b.target, Candidates: textCandidates(`,"temperature":0.5`),
		Claim: textClaim, Border: textBorder, Criteria: b.suite.Criteria, DataClassification: "synthetic", Clock: time.Now})
	if err == nil || !strings.Contains(err.Error(), "its temperature is above 0") {
		t.Errorf("sampled: %v", err)
	}
	if _, err := NewPlan(PlanOptions{Suite: record(t), BothWays: 1}); err == nil || !strings.Contains(err.Error(), "only texts can be streamed") {
		t.Errorf("tensors: %v", err)
	}
	// Whoever replays may write any plan. One of tensors that asks for it, or of more
	// cases than there are, gets no verdict that leaves it out.
	r := newBench(t, rounding).replay()
	r.Plan.BothWays = 3
	if report, err := Judge(r); err == nil && report.Verdict == attest.Certified {
		t.Error("a plan of tensors with it was certified")
	}
	r.Plan.BothWays, r.Plan.Threads = 0, &attest.OtherThreads{URL: "http://x", Threads: attest.Threads{Own: 1, Other: 2, DeclaredBy: attest.ByServer}}
	if report, err := Judge(r); err == nil && report.Verdict == attest.Certified {
		t.Error("a plan that varies threads, under criteria that do not judge it, was certified")
	}
	r.Plan.Threads = nil
	if report, err := Judge(r); err != nil || report.Verdict != attest.Certified {
		t.Errorf("with neither: %s, %v", report.Verdict, err)
	}
	b = newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	r = b.replay(nil)
	r.Plan.Cases, r.Plan.BothWays = 10_000, 9_999
	if report, err := Judge(r); err == nil && report.Verdict == attest.Certified {
		t.Error("a plan with it for more cases than there are was certified")
	}
	c := textCriteria(attest.TextCriteria{Decision: attest.DecideText, BothWays: true})
	if err := c.Validate(); err == nil {
		t.Error("criteria of version 2 with it")
	}
	// A reference that streams something else is none.
	b = newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	c.Version = 3
	b.server.SetMisbehave(func(int) string { return "stream-lost-token" })
	tg, err = Open(b.target)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Record(t.Context(), tg, RecordOptions{Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: b.target, Candidates: textCandidates(""),
		Claim: textClaim, Border: textBorder, Criteria: c, DataClassification: "synthetic", Clock: time.Now})
	if err == nil || !strings.Contains(err.Error(), "it is answered otherwise streamed than whole (stream-text)") {
		t.Errorf("a reference that loses tokens: %v", err)
	}
}

// What is asked the other way differs in nothing but the way.
func TestOtherWay(t *testing.T) {
	p, err := openai.NewProtocol(attest.Target{Protocol: openai.NameChat, URL: "http://x"})
	if err != nil {
		t.Fatal(err)
	}
	tools := `"tools":[{"type":"function","function":{"name":"f","parameters":{"z":"<b>","a":1.0}}}]`
	for _, more := range []string{tools, tools + `,"stream":false`, tools + `,"stream":true`, tools + `,"stream":true,"stream_options":{"include_usage":true}`} {
		c := Candidate{ID: "q", Request: []byte(`{"messages":[{"role":"user","content":"<tell> & me"}],` + more + `}`)}
		q := target.Question{ID: c.ID, Model: "m", Request: c.Request}
		first, err := p.Encode(q)
		if err != nil {
			t.Fatal(err)
		}
		other, sampled, err := openai.OtherWay(q, first)
		if err != nil || sampled {
			t.Fatal(sampled, err)
		}
		second, err := p.Encode(other)
		if err != nil {
			t.Fatal(err)
		}
		back, _, err := openai.OtherWay(other, second)
		if err != nil {
			t.Fatal(err)
		}
		third, err := p.Encode(back)
		if err != nil || string(third) != string(first) {
			t.Errorf("there and back is\n%s and was\n%s (%v)", third, first, err)
		}
		if streams(string(first)) == streams(string(second)) || strings.Contains(string(second), "stream_options") != streams(string(second)) {
			t.Errorf("%s\n%s", first, second)
		}
	}
}
