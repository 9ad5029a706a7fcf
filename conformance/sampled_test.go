package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

const drawnPrompts, drawnSamples, drawnMargin = 30, 8, 0.05

// asTokens compares the tokens of texts, in which the words of the fake server stand
// in the same place whatever the others are; it has more power there than by
// characters.
func asTokens(s *attest.SampledCriteria) { s.Unit = attest.UnitTokens }

// drawnCriteria are of 30 prompts with 8 samples each.
func drawnCriteria(change ...func(*attest.SampledCriteria)) attest.Criteria {
	s := &attest.SampledCriteria{Samples: drawnSamples, Unit: attest.UnitCharacters, Seeds: attest.SeedsEach, Temperature: 0.8}
	for _, f := range change {
		f(s)
	}
	c := textCriteria(attest.TextCriteria{Decision: attest.DecideSampled, Sampled: s})
	c.Version, c.Plan.N, c.Plan.Margin = 4, drawnPrompts, drawnMargin
	return c
}

func drawnCandidates(more string) (list []Candidate) {
	for i := range drawnPrompts + 5 {
		list = append(list, Candidate{ID: fmt.Sprintf("p-%03d", i), Request: request(i, more), Slice: map[string]string{"odd": fmt.Sprint(i%2 == 1)}})
	}
	return list
}

// always misbehaves in every answer.
func always(fault string) func(int) string { return func(int) string { return fault } }

// recordDrawn records a suite of sampled texts from a fake server, which misbehaves
// meanwhile if that is not "", and others by their faults.
func recordDrawn(t testing.TB, fault string, candidates []Candidate, criteria attest.Criteria, accepted ...string) (*textBench, error) {
	t.Helper()
	b := &textBench{t: t, server: targettest.NewOpenAI(t), options: PlanOptions{MaxWait: -1, Concurrency: 2}}
	b.target = attest.Target{Protocol: openai.NameChat, URL: b.server.URL + "/v1", Model: "parrot", Version: "parrot-2026-03-01"}
	b.server.SetMisbehave(always(fault))
	asked := 0
	opt := RecordOptions{Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: b.target, Candidates: candidates,
		Claim: criteria.Plan.N, Criteria: criteria, DataClassification: "synthetic", Clock: time.Now, Progress: func(n int) { asked += n }}
	tg, err := Open(b.target)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range accepted {
		other := targettest.NewOpenAI(t)
		other.SetMisbehave(always(fault))
		at := b.target
		at.URL = other.URL + "/v1"
		reference, err := Open(at)
		if err != nil {
			t.Fatal(err)
		}
		opt.Accepted = append(opt.Accepted, AcceptedTarget{fault, at, reference})
	}
	if b.suite, err = Record(context.Background(), tg, opt); err == nil && asked != opt.Requests() {
		t.Errorf("%d requests, and %d were foreseen", asked, opt.Requests())
	}
	return b, err
}

func newDrawnBench(t testing.TB, more string, criteria attest.Criteria, accepted ...string) *textBench {
	t.Helper()
	b, err := recordDrawn(t, "", drawnCandidates(more), criteria, accepted...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whoever draws as the reference does is certified, in whatever way the samples are
// declared.
func TestSampledTextsAreCertified(t *testing.T) {
	for name, tc := range map[string]struct {
		more   string
		change func(*attest.SampledCriteria)
		cases  int
	}{
		"characters":       {"", func(*attest.SampledCriteria) {}, drawnPrompts * drawnSamples},
		"tokens":           {withLogprobs, asTokens, drawnPrompts * drawnSamples},
		"streamed choices": {`,"n":4,"stream":true`, func(*attest.SampledCriteria) {}, drawnPrompts * drawnSamples / 4},
		"a prefix":         {"", func(s *attest.SampledCriteria) { s.Prefix = 12 }, drawnPrompts * drawnSamples},
		"no seeds":         {withLogprobs, func(s *attest.SampledCriteria) { s.Unit, s.Seeds = attest.UnitTokens, attest.SeedsNone }, drawnPrompts * drawnSamples},
		"own temperatures": {`,"temperature":0.9`, func(s *attest.SampledCriteria) { s.Temperature = 0 }, drawnPrompts * drawnSamples},
	} {
		t.Run(name, func(t *testing.T) {
			b := newDrawnBench(t, tc.more, drawnCriteria(tc.change))
			r := judged(t, b.replay(nil))
			s := r.Sampled
			if r.Verdict != attest.Certified || r.Cases.Claim != tc.cases || r.Cases.Compared != tc.cases || s == nil {
				t.Fatalf("%s: %v, %+v, %+v", r.Verdict, r.Reasons, r.Cases, s)
			}
			if s.Prompts != drawnPrompts || s.Samples != drawnSamples || len(s.References) != 1 || s.Nearest != attest.ReferenceName || (s.Beyond > 0) != (s.Prefix > 0) || r.Cases.Elements != s.Symbols {
				t.Errorf("%+v, %d elements", s, r.Cases.Elements)
			}
			if r.Power.Planned != drawnPrompts || r.Power.Margin != "0.05" || r.Power.UpperBound != s.References[0].Upper || number(r.Power.UpperBound) >= drawnMargin || number(r.Power.DetectableRate) <= 0 || number(r.Power.DetectableRate) > drawnMargin {
				t.Errorf("%+v", r.Power)
			}
			if n := len(r.Slices) + len(r.Flips); n != 0 || r.Clusters != nil || r.Texts != nil {
				t.Errorf("%d slices and flips, %+v, %+v", n, r.Clusters, r.Texts)
			}
		})
	}
}

// Another temperature or another distribution is refused; turned off, it passes.
func TestSampledTextsThatDiffer(t *testing.T) {
	b := newDrawnBench(t, "", drawnCriteria())
	for _, fault := range []string{"hot", "cold", "pinned-seed", "silent-canary"} {
		r := judged(t, b.replay(always(fault)))
		if r.Verdict != attest.Rejected || !strings.Contains(r.Reasons[0], "another distribution") {
			t.Errorf("%s: %s: %v", fault, r.Verdict, r.Reasons)
		}
		if strings.Contains(r.Difference, "always gets the same text") != (fault == "pinned-seed") {
			t.Errorf("%s: %s", fault, r.Difference)
		}
		if r := judged(t, b.replay(nil)); r.Verdict != attest.Certified {
			t.Errorf("without %s: %s: %v", fault, r.Verdict, r.Reasons)
		}
	}
	// One in two answers of another distribution is one, too.
	r := judged(t, b.replay(func(n int) string {
		if n%2 == 0 {
			return "silent-canary"
		}
		return ""
	}))
	if r.Verdict != attest.Rejected {
		t.Errorf("a canary: %s: %v", r.Verdict, r.Reasons)
	}
	// Near the margin nothing is shown, either way.
	criteria := drawnCriteria()
	criteria.Plan.Margin = 0.16
	r = judged(t, newDrawnBench(t, "", criteria).replay(always("hot")))
	if r.Verdict != attest.Inconclusive || !strings.Contains(r.Reasons[0], "it is not shown that the distance of sampled texts from the reference is within 0.16") {
		t.Errorf("near the margin: %s: %v", r.Verdict, r.Reasons)
	}
	// A difference that is shown, and lies within the margin, is certified: the claim
	// is equivalence with a margin.
	b = newDrawnBench(t, withLogprobs, drawnCriteria(asTokens))
	r = judged(t, b.replay(always("cold")))
	if s := r.Sampled.References[0]; r.Verdict != attest.Certified || number(s.SameP) > 0.01 || number(s.Distance) < 0.01 {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, s)
	}
}

// Everything that holds of cases holds of samples: one without an answer, or with
// one that is none, is not left out of the mean.
func TestSampledTextsWithFaults(t *testing.T) {
	b := newDrawnBench(t, `,"n":2`, drawnCriteria())
	for fault, want := range map[string]attest.Verdict{
		"http-500": attest.Inconclusive, "truncated": attest.Inconclusive, "drop-choice": attest.Rejected, "extra-choice": attest.Rejected, "error-in-200": attest.Rejected, "wrong-model": attest.Rejected,
	} {
		if r := judged(t, b.replay(b.after(fault, fourth))); r.Verdict != want || len(r.Reasons) == 0 {
			t.Errorf("%s: %s: %v, want %s", fault, r.Verdict, r.Reasons, want)
		}
	}
	// Of a prompt without enough samples nothing is computed, and that is said.
	replayed := b.replay(nil)
	replayed.Observations = slices.DeleteFunc(replayed.Observations, func(o attest.Observation) bool { return strings.HasSuffix(o.Case, b.suite.Cases[0].Cluster) })
	replayed.Replay.Observations = len(replayed.Observations)
	r := judged(t, replayed)
	if r.Verdict != attest.Inconclusive || !strings.Contains(strings.Join(r.Reasons, ";"), "cannot be judged") || r.Power.UpperBound != "2" || r.Power.DetectableRate != "2" {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Power)
	}
}

// Two runs with the same seeds draw the same texts: they are as like as can be, and
// that shows nothing of what they are drawn from.
func TestTrapIdenticalSeeds(t *testing.T) {
	// A server that takes its seeds from its start and not from requests: it says the
	// same again to whoever asks the same again after a restart.
	for _, seeds := range []string{attest.SeedsEach, attest.SeedsNone} {
		b, err := recordDrawn(t, "seeds-from-start", drawnCandidates(withLogprobs), drawnCriteria(asTokens, func(s *attest.SampledCriteria) { s.Seeds = seeds }))
		if err != nil {
			t.Fatal(err)
		}
		restarted := targettest.NewOpenAI(t)
		b.server, b.target.URL = restarted, restarted.URL+"/v1"
		r := judged(t, b.replay(always("seeds-from-start")))
		if r.Verdict != attest.Inconclusive || !strings.Contains(r.Reasons[0], "more in common") || number(r.Sampled.References[0].Distance) > -0.05 {
			t.Errorf("seeds %s: %s: %v, %+v", seeds, r.Verdict, r.Reasons, r.Sampled.References)
		}
		if r := judged(t, b.replay(nil)); r.Verdict != attest.Certified {
			t.Errorf("seeds %s, drawn anew: %s: %v", seeds, r.Verdict, r.Reasons)
		}
	}
	// Where seeds are heeded no two requests have one, whoever is asked.
	b := newDrawnBench(t, "", drawnCriteria(), "hot")
	seen := map[string]string{}
	for _, c := range b.suite.Cases {
		for _, who := range []string{whoEnvironment, whoReference(attest.ReferenceName), whoReference("hot")} {
			request := drawRequest(*b.suite.Criteria.Text.Sampled, b.suite.Texts[c.ID].Request, who, c.ID)
			var q struct {
				Seed        *int64   `json:"seed"`
				Temperature *float64 `json:"temperature"`
				Messages    any      `json:"messages"`
			}
			if err := json.Unmarshal(request, &q); err != nil || q.Seed == nil || *q.Seed < 0 || *q.Seed > math.MaxInt32 || *q.Temperature != 0.8 || q.Messages == nil {
				t.Fatalf("%s: %v", request, err)
			}
			key := fmt.Sprint(*q.Seed)
			if other, ok := seen[key]; ok {
				t.Errorf("%s of %s has the seed of %s", c.ID, who, other)
			}
			seen[key] = c.ID + " of " + who
		}
	}
	if got := string(drawRequest(attest.SampledCriteria{Seeds: attest.SeedsNone}, ` { "prompt":"x"} `, whoEnvironment, "1")); got != `{"seed":null,"prompt":"x"}` {
		t.Errorf("%s", got)
	}
}

// What draws nothing, or changes meanwhile, is no reference.
func TestSampledReferencesThatAreNone(t *testing.T) {
	for name, tc := range map[string]struct {
		fault, more string
		change      func(*attest.Criteria)
		want        string
	}{
		"always one seed":    {"pinned-seed", "", nil, "no prompt got two texts that differ"},
		"two temperatures":   {"", `,"temperature":0.5`, nil, "the criteria have one for all"},
		"no temperature":     {"", "", func(c *attest.Criteria) { c.Text.Sampled.Temperature = 0 }, "no temperature above 0"},
		"greedy":             {"", `,"temperature":0`, func(c *attest.Criteria) { c.Text.Sampled.Temperature = 0 }, "no temperature above 0"},
		"a seed":             {"", `,"seed":1`, nil, "it has a seed"},
		"no multiple":        {"", `,"n":3`, nil, "not a multiple"},
		"no tokens":          {"", "", func(c *attest.Criteria) { c.Text.Sampled.Unit = attest.UnitTokens }, "has to ask for log probabilities"},
		"an alpha too small": {"", "", func(c *attest.Criteria) { c.Plan.Alpha = 0.0001 }, "cannot be shown"},
		"too few prompts":    {"", "", func(c *attest.Criteria) { c.Plan.N = 9 }, "at least 10 prompts"},
		"flips":              {"", "", func(c *attest.Criteria) { c.Plan.Allowed = 1 }, "nothing of them flips"},
		"an edit distance":   {"", "", func(c *attest.Criteria) { c.Limits = []attest.Limit{{Measure: attest.MeasureEdit, Margin: 0.1}} }, "not to be the same"},
		"version 3":          {"", "", func(c *attest.Criteria) { c.Version = 3 }, "version 4"},
		"three samples":      {"", "", func(c *attest.Criteria) { c.Text.Sampled.Samples = 3 }, "from 4 to 999"},
		"unknown seeds":      {"", "", func(c *attest.Criteria) { c.Text.Sampled.Seeds = "some" }, "seeds"},
		"unknown unit":       {"", "", func(c *attest.Criteria) { c.Text.Sampled.Unit = "bytes" }, "unit"},
		"another decision":   {"", "", func(c *attest.Criteria) { c.Text.Decision = attest.DecideText }, "no other decision may"},
	} {
		t.Run(name, func(t *testing.T) {
			criteria := drawnCriteria()
			if tc.change != nil {
				tc.change(&criteria)
			}
			if _, err := recordDrawn(t, tc.fault, drawnCandidates(tc.more), criteria); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	// In the middle of it the reference turned hot.
	n := 0
	d := newDrawn(newSymbols(*drawnCriteria().Text.Sampled))
	for i := range drawnSamples {
		for p := range drawnPrompts {
			n++
			word := string(rune('a' + n%2))
			if i >= drawnSamples/2 {
				word = "c"
			}
			if err := d.add(fmt.Sprint(p), []attest.TextChoice{{Text: word}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := floorOf(d, drawnCriteria().Plan, "x"); err == nil || !strings.Contains(err.Error(), "changed while it was recorded") {
		t.Errorf("%v", err)
	}
}

// An accepted-precision set: it is enough to be like one of the references, and too
// little to be like none.
func TestAcceptedReferences(t *testing.T) {
	criteria := drawnCriteria()
	criteria.Plan.Margin = 0.1
	b := newDrawnBench(t, "", criteria, "hot", "silent-canary")
	for fault, nearest := range map[string]string{"": attest.ReferenceName, "hot": "hot", "silent-canary": "silent-canary"} {
		r := judged(t, b.replay(always(fault)))
		if r.Verdict != attest.Certified || r.Sampled.Nearest != nearest || len(r.Sampled.References) != 3 || !strings.Contains(r.Claim, "one of 3 references") {
			t.Errorf("%q: %s: %v, nearest %s", fault, r.Verdict, r.Reasons, r.Sampled.Nearest)
		}
		// One of three chances is at a third of alpha.
		for _, x := range r.Sampled.References {
			if h := r.Gates[2].Hypotheses[0]; x.Name == nearest && (r.Power.UpperBound != x.Upper || math.Abs(number(h.P)-3*number(x.P)) > 1e-9) {
				t.Errorf("%q: bound %s and p %s, and those of the nearest are %s and %s", fault, r.Power.UpperBound, h.P, x.Upper, x.P)
			}
		}
	}
	for _, fault := range []string{"cold", "pinned-seed"} {
		r := judged(t, b.replay(always(fault)))
		if r.Verdict != attest.Rejected || !strings.Contains(r.Reasons[0], "another distribution") {
			t.Errorf("%s: %s: %v", fault, r.Verdict, r.Reasons)
		}
	}
	alone := newDrawnBench(t, "", criteria)
	if r := judged(t, alone.replay(always("hot"))); r.Verdict != attest.Rejected {
		t.Errorf("hot, which is not accepted: %s: %v", r.Verdict, r.Reasons)
	}
	for want, change := range map[string]func(*Suite){
		"a name of its own":               func(s *Suite) { s.Document.Accepted[0].Name = attest.ReferenceName },
		"of 3 accepted":                   func(s *Suite) { s.Document.Accepted = append(s.Document.Accepted, named3(s)) },
		"was not measured":                func(s *Suite) { s.Document.Reference.Sampled = nil },
		"accepted reference hot: it is f": func(s *Suite) { s.Document.Accepted[0].Sampled = nil },
	} {
		s := stored(t, b.suite)
		s.Document.Accepted = slices.Clone(s.Document.Accepted)
		change(s)
		if err := s.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func named3(s *Suite) attest.AcceptedReference {
	a := s.Document.Accepted[0]
	a.Name = "third"
	return a
}

// A suite of sampled texts is the same after it was stored; its verdict is made
// again to the byte; and a prompt is sealed with all its samples.
func TestSampledSuiteArtifact(t *testing.T) {
	b := newDrawnBench(t, "", drawnCriteria(), "hot")
	replayed := b.replay(nil)
	want, err := attest.Marshal(judged(t, replayed))
	if err != nil {
		t.Fatal(err)
	}
	again := *replayed
	again.Suite = stored(t, b.suite)
	if got, err := attest.Marshal(judged(t, &again)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("judged again it is\n%s, and was\n%s (%v)", got, want, err)
	}
	prompt := b.suite.Cases[3].Cluster
	part, err := b.suite.Seal(map[string]bool{prompt: true}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	closed := stored(t, b.suite)
	if closed.Closed() != drawnSamples {
		t.Fatalf("%d cases are sealed, and the prompt has %d samples", closed.Closed(), drawnSamples)
	}
	if err := closed.Open(part); err != nil || closed.validate() != nil {
		t.Errorf("%v, %v", err, closed.validate())
	}
	replayed = b.replay(nil)
	replayed.Suite = closed
	if r := judged(t, replayed); r.Verdict != attest.Certified {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
	// What does not fit together is no suite.
	for want, change := range map[string]func(*Suite){
		"has 7 samples": func(s *Suite) {
			delete(s.Texts, s.Cases[0].ID)
			s.Cases = s.Cases[1:]
			s.Document.Claim--
		},
		"the plan is for 31 clusters": func(s *Suite) { s.Criteria.Plan.N++ },
		"2 choices of 1": func(s *Suite) {
			x := s.Texts[s.Cases[0].ID]
			x.Choices = append(x.Choices, x.Choices...)
			s.Texts[x.ID] = x
		},
	} {
		s := stored(t, newDrawnBench(t, "", drawnCriteria()).suite)
		change(s)
		if err := s.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Texts are symbols: their characters or tokens, and what was refused or called.
func TestSymbols(t *testing.T) {
	chars, tokens := newSymbols(attest.SampledCriteria{Unit: attest.UnitCharacters}), newSymbols(attest.SampledCriteria{Unit: attest.UnitTokens})
	of := func(s *symbols, c attest.TextChoice) []int32 {
		list, _, err := s.of(c)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	call := func(arguments string) attest.TextChoice {
		return attest.TextChoice{ToolCalls: []attest.TextToolCall{{Name: "pay", Arguments: arguments}}}
	}
	if !slices.Equal(of(chars, attest.TextChoice{Text: "aé"}), []int32{'a', 'é'}) {
		t.Error("characters are not code points")
	}
	if !slices.Equal(of(chars, call(`{"a":1,"b":2}`)), of(chars, call(`{ "b":2, "a":1.0}`))) || slices.Equal(of(chars, call(`{"a":1}`)), of(chars, call(`{"a":2}`))) {
		t.Error("arguments are not compared by what they say")
	}
	if slices.Equal(of(chars, attest.TextChoice{Text: "no"}), of(chars, attest.TextChoice{Refusal: "no"})) {
		t.Error("a refusal is a text")
	}
	a := of(tokens, attest.TextChoice{Text: "ab", Tokens: []attest.TextToken{{Token: "a"}, {Token: "b"}}})
	b := of(tokens, attest.TextChoice{Text: "ab", Tokens: []attest.TextToken{{Token: "ab"}}})
	if len(a) != 2 || len(b) != 1 || a[0] == b[0] || a[0] == 'a' {
		t.Errorf("tokens %v and %v", a, b)
	}
}

// Whole replays at the margin, through a server, replay and judge: certified with
// alpha at most. And without a difference nearly always, and never refused.
func TestFalseAlarmsOfSampledReplays(t *testing.T) {
	runs := 8
	if soak() {
		runs = 150
	}
	certified, refused := 0, 0
	for range runs {
		// Each run has a reference of its own: its samples are drawn, too.
		b, err := recordDrawn(t, "", drawnCandidates(withLogprobs), drawnCriteria(asTokens, func(s *attest.SampledCriteria) { s.Seeds = attest.SeedsNone }))
		if err != nil {
			t.Fatal(err)
		}
		switch r := judged(t, b.replay(nil)); r.Verdict {
		case attest.Certified:
			certified++
		case attest.Rejected:
			refused++
		}
		b.server.CloseClientConnections()
	}
	if stats.UpperBound(certified, runs, 0.001) < 0.9 || refused > 0 {
		t.Errorf("of %d environments without a difference %d are certified and %d refused", runs, certified, refused)
	}
	t.Logf("of %d environments without a difference %d are certified and %d refused", runs, certified, refused)
}
