package conformance

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// A pairedBench has a suite of which each tenth label is not what the reference
// decides, so that an environment can get worse and better.
type pairedBench struct {
	*bench
	wrong map[string]bool // by what is asked: the environment decides otherwise there
}

// flipsAllowed lets so many decisions flip that something else decides.
func flipsAllowed(n, allowed int) attest.Criteria {
	c := criteria(n, allowed)
	c.Version, c.Noise = 4, &attest.NoiseCriteria{Ratio: 4}
	c.Outputs[0].Absolute = 2 // only decisions are looked at
	return c
}

func key(in []float32) string { return fmt.Sprintf("%.3f %.3f", in[0], in[1]) }

func newPairedBench(t testing.TB, all []Candidate, c attest.Criteria) *pairedBench {
	t.Helper()
	b := &pairedBench{wrong: map[string]bool{}}
	suite, err := recordPaired(t, all, c)
	if err != nil {
		t.Fatal(err)
	}
	b.bench = &bench{t: t, suite: suite, dir: t.TempDir(), server: targettest.NewServer(t, func(in []float32) []float32 {
		p := scorer(in)
		if b.wrong[key(in)] {
			return []float32{p[1], p[0]}
		}
		return p
	})}
	return b
}

func recordPaired(t testing.TB, all []Candidate, c attest.Criteria) (*Suite, error) {
	t.Helper()
	s := targettest.NewServer(t, scorer)
	return Record(context.Background(), connect(t, s), RecordOptions{
		Name: "scorer", Model: attest.ResourceOf("", digest.FromString("model")), Target: targetOf(s), Candidates: all,
		Claim: c.Plan.N, Criteria: c, DataClassification: "synthetic", Clock: func() time.Time { return start },
	})
}

// asked is what a case asks.
func (b *pairedBench) asked(c attest.Case) []float32 {
	t := b.suite.Tensors[c.InputTensor("features")]
	return []float32{math.Float32frombits(binary.LittleEndian.Uint32(t.Bits)), math.Float32frombits(binary.LittleEndian.Uint32(t.Bits[4:]))}
}

// change lets the environment decide otherwise in so many cases in which the
// reference is right, and in which it is wrong.
func (b *pairedBench) change(worse, better int) *pairedBench {
	clear(b.wrong)
	b.dir = b.t.TempDir()
	for _, c := range b.suite.Cases {
		right, known, err := b.suite.rightOf(c, decider{})
		switch {
		case err != nil || !known:
			b.t.Fatal(known, err)
		case right && worse > 0:
			worse--
		case !right && better > 0:
			better--
		default:
			continue
		}
		b.wrong[key(b.asked(c))] = true
	}
	if worse+better > 0 {
		b.t.Fatalf("%d and %d cases are missing", worse, better)
	}
	return b
}

// withLabels puts what is right beside cases.
func withLabels(all []Candidate) []Candidate {
	for i := range all {
		t, err := all[i].Inputs["features"].tensor("features")
		if err != nil {
			panic(err)
		}
		p := scorer([]float32{math.Float32frombits(binary.LittleEndian.Uint32(t.Bits)), math.Float32frombits(binary.LittleEndian.Uint32(t.Bits[4:]))})
		approve := p[1] >= 0.5
		if i%10 == 0 {
			approve = !approve
		}
		all[i].Label = map[bool]string{true: "approve", false: "decline"}[approve]
	}
	return all
}

func TestAccuracy(t *testing.T) {
	c := flipsAllowed(200, 40)
	c.Plan.Margin = 0.3
	c.Limits = []attest.Limit{{Measure: attest.MeasureAccuracy, Margin: 0.05}}
	b := newPairedBench(t, withLabels(candidates(230)), c)
	for name, tc := range map[string]struct {
		worse, better int
		want          attest.Verdict
		reason        string
		p             float64 // of McNemar
	}{
		"the same":              {0, 0, attest.Certified, "", 1},
		"as often better":       {4, 4, attest.Certified, "", 1},
		"better":                {0, 9, attest.Certified, "", 0.00390625},
		"worse":                 {30, 0, attest.Rejected, "accuracy falls by 0.15 of the cases", 2 * math.Pow(0.5, 30)},
		"worse, and not shown":  {8, 0, attest.Inconclusive, "not shown that accuracy falls by less than 0.05", 0.0078125},
		"little worse, unshown": {5, 1, attest.Inconclusive, "not shown that accuracy", 0.21875},
	} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			r := judged(t, b.change(tc.worse, tc.better).replay())
			if r.Verdict != tc.want || !strings.Contains(strings.Join(r.Reasons, ";"), tc.reason) {
				t.Fatalf("%s: %v", r.Verdict, r.Reasons)
			}
			a := r.Accuracy
			if a == nil || a.Cases != 200 || a.Clusters != 200 || a.Worse != tc.worse || a.Better != tc.better || a.Environment-a.Reference != tc.better-tc.worse || a.Unanswered != 0 {
				t.Fatalf("%+v", a)
			}
			if math.Abs(number(a.P)-tc.p) > 1e-9 || number(a.MidP) > number(a.P) || number(a.Loss) != float64(tc.worse-tc.better)/200 {
				t.Errorf("%+v, want p %v", a, tc.p)
			}
			if number(a.Lower) > number(a.Loss) || number(a.Upper) < number(a.Loss) || number(a.Upper) == 0 {
				t.Errorf("bounds of %+v", a)
			}
			g := r.Gates[2].Hypotheses[0]
			if g.Name != attest.MeasureAccuracy || g.N != 200 || g.Margin != "0.05" || r.Gates[2].Tested && g.Holds != (tc.want == attest.Certified) {
				t.Errorf("%+v", g)
			}
			var text, page strings.Builder
			if err := WriteForm(&text, "txt", r); err != nil {
				t.Fatal(err)
			}
			if err := WriteForm(&page, "html", r); err != nil {
				t.Fatal(err)
			}
			for _, s := range []string{text.String(), page.String()} {
				if !strings.Contains(s, fmt.Sprintf("%d got worse, %d got better, 0 have no answer", tc.worse, tc.better)) || !strings.Contains(s, "McNemar, exact") {
					t.Errorf("the report does not say so:\n%.2000s", s)
				}
			}
		})
	}
	b.t = t
	// Whoever does not answer is wrong.
	b.change(0, 0)
	var asked atomic.Int64
	b.server.SetMisbehave(func(int) string {
		if asked.Add(1) == 50 {
			return "http-500"
		}
		return ""
	})
	r := judged(t, b.replay())
	b.server.SetMisbehave(nil)
	i := slices.IndexFunc(b.suite.Cases, func(c attest.Case) bool { return len(r.Examples) > 0 && c.ID == r.Examples[0].Case })
	if i < 0 {
		t.Fatalf("%+v", r.Examples)
	}
	right, _, err := b.suite.rightOf(b.suite.Cases[i], decider{})
	if a := r.Accuracy; err != nil || r.Verdict == attest.Certified || a.Unanswered != 1 || a.Worse != boolInt(right) || a.Better != 0 || a.Reference-a.Environment != boolInt(right) {
		t.Errorf("%s: %+v, %v, %v", r.Verdict, a, r.Errors, err)
	}
	// Without the limit it is said and decides nothing; before version 4 it was not
	// said.
	b.suite.Criteria.Limits = nil
	if r := judged(t, b.change(8, 0).replay()); r.Verdict != attest.Certified || r.Accuracy == nil || r.Accuracy.P != "0.0078125" {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Accuracy)
	}
	b.suite.Criteria.Version = 3
	if r := judged(t, b.change(8, 0).replay()); r.Verdict != attest.Certified || r.Accuracy != nil {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Accuracy)
	}
}

// A limit that nobody could pass, or that nobody could fail, is none.
func TestAccuracyThatCannotBeShown(t *testing.T) {
	for want, tc := range map[string]struct {
		change func([]Candidate)
		margin float64
	}{
		"needs claim cases that have a label": {func(all []Candidate) {
			for i := range all {
				all[i].Label = ""
			}
		}, 0.1},
		`the label "fraud", which is none of the decisions decline, approve`: {func(all []Candidate) {
			for i := range all {
				all[i].Label = "fraud"
			}
		}, 0.1},
		"at least 368 independent cases that have a label, and there are 59": {func([]Candidate) {}, 0.01},
		"there is nothing it could lose": {func(all []Candidate) {
			for i := range all {
				all[i].Label = map[string]string{"approve": "decline", "decline": "approve"}[all[i].Label]
			}
		}, 0.2},
	} {
		all := withLabels(candidates(59))
		tc.change(all)
		c := flipsAllowed(59, 0)
		c.Limits = []attest.Limit{{Measure: attest.MeasureAccuracy, Margin: tc.margin}}
		if _, err := recordPaired(t, all, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for name, change := range map[string]func(*attest.Criteria){
		"version 3":    func(c *attest.Criteria) { c.Version = 3 },
		"of an output": func(c *attest.Criteria) { c.Limits[0].Output = "probabilities" },
		"no share":     func(c *attest.Criteria) { c.Limits[0].Margin = 1 },
		"of tool calls": func(c *attest.Criteria) {
			c.Outputs, c.Text = []attest.OutputCriteria{}, &attest.TextCriteria{Decision: attest.DecideToolCalls}
		},
		"of neighbours": func(c *attest.Criteria) {
			c.Outputs[0].Relative, c.Outputs[0].Decision = 0, attest.Decision{Kind: attest.DecideNearest, Labels: []string{}}
		},
	} {
		c := flipsAllowed(59, 0)
		c.Limits = []attest.Limit{{Measure: attest.MeasureAccuracy, Margin: 0.1}}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// What is right is said of texts, too.
func TestLabelsOfTexts(t *testing.T) {
	say := func(list ...string) (out []attest.TextChoice) {
		for _, s := range list {
			out = append(out, attest.TextChoice{Text: s, FinishReason: "stop", Tokens: []attest.TextToken{{Token: " yes", Logprob: -1}}})
		}
		return out
	}
	pattern, pointer := attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `= *(\S+)`}, attest.TextCriteria{Decision: attest.DecideAnswer, Pointer: "/sum"}
	exact, first := attest.TextCriteria{Decision: attest.DecideText}, attest.TextCriteria{Decision: attest.DecideToken}
	for _, tc := range []struct {
		c     attest.TextCriteria
		label string
		said  []attest.TextChoice
		right bool
	}{
		{pattern, "4", say("x = 4"), true}, {pattern, "4", say("x = 5"), false}, {pattern, "4", say("four"), false}, {pattern, "4", say("x = 4", "x = 5"), false}, {pattern, "4", nil, false},
		{pointer, "4", say(`{"sum":4.0}`), true}, {pointer, "four", say(`{"sum":"four"}`), true}, {pointer, `"four"`, say(`{"sum":"four"}`), true}, {pointer, "5", say(`{"sum":4}`), false}, {pointer, "4", say("4"), false},
		{exact, "yes it is", say("yes  it is\n"), true}, {exact, "yes", say("no"), false}, {first, "yes", say("whatever"), true}, {first, "no", say("no"), false},
	} {
		d, err := newDecider(tc.c)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.right(tc.label, tc.said); got != tc.right {
			t.Errorf("%s %q: %+v is right %v", tc.c.Decision, tc.label, tc.said, got)
		}
	}
	// Through record, replay and judge: the canary gives other answers.
	all := textCandidates("")
	for i := range all {
		all[i].Label = fmt.Sprint(i)
	}
	c := textCriteria(attest.TextCriteria{Decision: attest.DecideAnswer, Pattern: `is (\d+) number`}, attest.Limit{Measure: attest.MeasureAccuracy, Margin: 0.1})
	c.Version = 4
	b := newTextBench(t, all, c)
	r := judged(t, b.replay(nil))
	if a := r.Accuracy; r.Verdict != attest.Certified || a == nil || a.Cases != textClaim || a.Reference != textClaim || a.Environment != textClaim {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, a)
	}
	r = judged(t, b.replay(b.after("truncated", fourth)))
	if a := r.Accuracy; a.Worse+a.Unanswered > 0 && a.Worse != a.Unanswered || r.Verdict != attest.Inconclusive {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, a)
	}
}

// inClusters puts n cases each into a cluster, the last ones by themselves.
func inClusters(all []Candidate, n int) []Candidate {
	for i := range all {
		if i < len(all)-5 {
			all[i].Cluster = fmt.Sprintf("document-%03d", i/n)
		}
	}
	return all
}

// Cases of one cluster count once: four flips in one document are one, and four
// documents with a flip are four.
func TestClusters(t *testing.T) {
	b := newPairedBench(t, withLabels(inClusters(candidates(4*96+5), 4)), flipsAllowed(93, 1))
	cases := map[string][]attest.Case{}
	for _, c := range b.suite.Cases {
		cases[unitOf(c)] = append(cases[unitOf(c)], c)
	}
	if len(cases) != 93 || b.suite.Document.Claim != len(b.suite.Cases) || b.suite.Document.Reference.Measured != len(b.suite.Cases) {
		t.Fatalf("%d clusters, %d claim cases", len(cases), b.suite.Document.Claim)
	}
	var whole []string
	for unit, list := range cases {
		if len(list) == 4 {
			whole = append(whole, unit)
		} else if len(list) != 1 || list[0].Cluster != "" {
			t.Fatalf("%s has %d cases: a cluster is drawn as a whole", unit, len(list))
		}
	}
	slices.Sort(whole)
	flip := func(clusters, of int) *Replayed {
		clear(b.wrong)
		b.dir = t.TempDir()
		for _, unit := range whole[:clusters] {
			for _, c := range cases[unit][:of] {
				b.wrong[key(b.asked(c))] = true
			}
		}
		return b.replay()
	}
	r := judged(t, flip(1, 4))
	if r.Verdict != attest.Certified || r.Power.Observed != 1 || r.Power.Planned != 93 || r.Clusters == nil || r.Clusters.Flipping != 1 || r.Clusters.Largest != 4 || r.Flips[0].Cases+len(r.Flips[1:]) < 1 {
		t.Fatalf("%s: %v, %+v, %+v", r.Verdict, r.Reasons, r.Power, r.Clusters)
	}
	if !strings.Contains(r.Claim, "in at most 5 % of clusters of cases a decision differs") || !strings.Contains(r.Claim, "1 of 93 observed") {
		t.Error(r.Claim)
	}
	for form, want := range map[string]string{"txt": "flips in fewer than", "html": "<h2>Clusters of cases</h2>"} {
		var page strings.Builder
		if err := WriteForm(&page, form, r); err != nil || !strings.Contains(page.String(), want) || !strings.Contains(page.String(), "decisions flip in 1 clusters") {
			t.Errorf("%s does not say %q (%v)", form, want, err)
		}
	}
	// As many flips, each in a document of its own.
	r = judged(t, flip(4, 1))
	if r.Verdict != attest.Rejected || r.Power.Observed != 4 || r.Reasons[0] != "decisions flip in 4 of 93 clusters of cases, 1 are allowed" {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
	// The bounds of the rate of cases know that flips come together.
	together, apart := judged(t, flip(3, 4)).Clusters, judged(t, flip(12, 1)).Clusters
	if together.FlipRate != apart.FlipRate || number(together.Upper) <= number(apart.Upper) || number(together.Lower) > number(together.FlipRate) {
		t.Errorf("%+v and %+v", together, apart)
	}
	// A cluster with a case that has no answer was not answered.
	n := len(b.suite.Cases)
	replayed := flip(0, 0)
	replayed.Observations = slices.DeleteFunc(replayed.Observations, func(o attest.Observation) bool { return o.Case == cases[whole[0]][1].ID && o.Probe == "" })
	replayed.Replay.Observations--
	r = judged(t, replayed)
	if r.Verdict != attest.Inconclusive || r.Cases.Missing != 1 || r.Cases.Claim != n || measureOf(r, "upper bound on the flip rate").SampleSize != 92 {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Cases)
	}
	// Means are of clusters: their number is what the error is of.
	b.suite.Criteria.Limits = []attest.Limit{{Measure: attest.MeasureAbsolute, Output: "probabilities", Margin: 0.1}}
	r = judged(t, flip(1, 4))
	for _, h := range r.Gates[1].Hypotheses {
		if strings.HasPrefix(h.Name, attest.MeasureAbsolute) && h.N != 93 {
			t.Errorf("the mean of %s is of %d", h.Name, h.N)
		}
	}
	if a := r.Accuracy; a == nil || a.Clusters != 93 || a.Cases != n {
		t.Errorf("%+v", a)
	}
}

func measureOf(r attest.Report, name string) attest.Metric {
	i := slices.IndexFunc(r.Metrics, func(m attest.Metric) bool { return m.Name == name })
	return r.Metrics[i]
}

// A case with two decisions that flip is one case.
func TestClustersCountCasesOnce(t *testing.T) {
	x := newClusters(1)
	one, two := attest.Case{ID: "1", Cluster: "a"}, attest.Case{ID: "2", Cluster: "a"}
	for _, c := range []attest.Case{one, one, two} {
		x.flip(c)
	}
	if k := x.of(one); k.flips != 2 {
		t.Errorf("%d cases flip, and there are two", k.flips)
	}
}

// Clusters are drawn as wholes, in an order that follows from the seed alone, and
// border cases are none of theirs.
func TestDrawUnits(t *testing.T) {
	type thing struct {
		id, unit, stratum string
		distance          float64
	}
	rapid.Check(t, func(rt *rapid.T) {
		var all []thing
		units := map[string]bool{}
		for i := range rapid.IntRange(2, 40).Draw(rt, "n") {
			x := thing{fmt.Sprintf("%02d", i), rapid.SampledFrom([]string{"", "a", "b", "c", "d"}).Draw(rt, "unit"), rapid.SampledFrom([]string{"", "", "claim", "border"}).Draw(rt, "stratum"), float64(i)}
			all = append(all, x)
			if x.stratum != "border" {
				units[unitOf(attest.Case{ID: x.id, Cluster: x.unit})] = true
			}
		}
		claim := rapid.IntRange(1, 12).Draw(rt, "claim")
		unit := func(x thing) string { return x.unit }
		about := func(x thing) (string, string, float64) { return x.id, x.stratum, x.distance }
		chosen, _, err := drawUnits(slices.Clone(all), [32]byte{7}, claim, 0, unit, about)
		if (err != nil) != (claim > len(units)) {
			rt.Fatalf("%v, with %d of %d units", err, claim, len(units))
		}
		if err != nil {
			return
		}
		again, _, _ := drawUnits(slices.Clone(all), [32]byte{7}, claim, 0, unit, about)
		got := map[string]int{}
		for _, x := range chosen {
			got[unitOf(attest.Case{ID: x.id, Cluster: x.unit})]++
			if x.stratum == "border" {
				rt.Errorf("%+v is a claim case", x)
			}
		}
		whole := map[string]int{}
		for _, x := range all {
			if u := unitOf(attest.Case{ID: x.id, Cluster: x.unit}); x.stratum != "border" && got[u] > 0 {
				whole[u]++
			}
		}
		if len(got) != claim || fmt.Sprint(got) != fmt.Sprint(whole) || !slices.Equal(chosen, again) || !slices.IsSortedFunc(chosen, func(a, b thing) int { return strings.Compare(a.id, b.id) }) {
			rt.Errorf("%d units are asked for: %v of %v", claim, got, whole)
		}
	})
}

// Where clusters would not be counted as such they are refused.
func TestClustersThatAreNone(t *testing.T) {
	c := flipsAllowed(59, 0)
	for want, tc := range map[string]struct {
		change func(*attest.Criteria)
		all    []Candidate
	}{
		"version 4":          {func(c *attest.Criteria) { c.Version = 3 }, inClusters(candidates(300), 4)},
		"nearest neighbours": {func(c *attest.Criteria) { c.Outputs[0].Decision = attest.Decision{Kind: attest.DecideNearest} }, inClusters(candidates(300), 4)},
		"59 clusters of claim cases are needed and there are 29": {func(*attest.Criteria) {}, inClusters(candidates(100), 4)},
	} {
		c := c
		c.Outputs = slices.Clone(c.Outputs)
		tc.change(&c)
		if _, err := recordPaired(t, tc.all, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	s, err := recordPaired(t, inClusters(candidates(300), 4), c)
	if err != nil {
		t.Fatal(err)
	}
	s.Criteria.Plan.N = s.Document.Claim
	if err := s.validate(); err == nil || !strings.Contains(err.Error(), "cases of one cluster count once") {
		t.Errorf("%v", err)
	}
}
