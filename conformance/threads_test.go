package conformance

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// declaring starts a server that says on how many threads it computes.
func declaring(t testing.TB, threads int, model func([]float32) []float32) *targettest.Server {
	s := targettest.NewServer(t, model)
	s.Threads = threads
	return s
}

// A threadBench is two endpoints of a reference, and two of an environment.
type threadBench struct {
	t                  testing.TB
	criteria           attest.Criteria
	reference, another *targettest.Server
	here, there        *targettest.Server
	suite              *Suite
}

func newThreadBench(t testing.TB) *threadBench {
	c := criteria(59, 0)
	c.Version, c.Noise = 3, &attest.NoiseCriteria{Ratio: 4}
	return &threadBench{t: t, criteria: c, reference: declaring(t, 1, scorer), another: declaring(t, 4, rounding), here: declaring(t, 1, scorer), there: declaring(t, 2, rounding)}
}

func (b *threadBench) record() (err error) {
	o, err := FindThreads(b.t.Context(), targetOf(b.reference), b.another.URL, 0, 0)
	if err != nil {
		return err
	}
	asked := 0
	opt := RecordOptions{
		Name: "scorer", Model: attest.ResourceOf("", digest.FromString("model")), Target: targetOf(b.reference), Candidates: candidates(120), Claim: 59, Border: 12,
		Criteria: b.criteria, DataClassification: "synthetic", Threads: &o, Clock: func() time.Time { return start }, Progress: func(n int) { asked += n },
	}
	b.suite, err = Record(b.t.Context(), connect(b.t, b.reference), opt)
	if err == nil && asked != opt.Requests() {
		b.t.Errorf("%d requests, and %d were foreseen", asked, opt.Requests())
	}
	return err
}

// replay replays the suite with both endpoints of the environment.
func (b *threadBench) replay(change ...func(*attest.Plan)) *Replayed {
	b.t.Helper()
	if b.suite == nil {
		if err := b.record(); err != nil {
			b.t.Fatal(err)
		}
	}
	o, err := FindThreads(b.t.Context(), targetOf(b.here), b.there.URL, 0, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	suite, criteria, err := b.suite.digests()
	if err != nil {
		b.t.Fatal(err)
	}
	env := attest.Environment{Name: "prod", Target: targetOf(b.here), Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: start}
	plan, err := NewPlan(PlanOptions{
		Model: digest.FromString("model"), Suite: b.suite, SuiteDigest: suite, CriteriaDigest: criteria, Environment: env, EnvironmentDigest: digest.FromString("env"),
		Threads: &o, Now: start,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range change {
		f(&plan)
	}
	replay, observations, err := Replay(b.t.Context(), b.suite, plan, digest.FromString("plan"), connect(b.t, b.here), ReplayOptions{Dir: b.t.TempDir(), Clock: time.Now})
	if err != nil {
		b.t.Fatal(err)
	}
	return &Replayed{Suite: b.suite, Plan: plan, PlanDigest: digest.FromString("plan"), Environment: env, Replay: replay, Observations: observations}
}

// Another number of threads is noise, on both sides: it is asked for there, it is
// in the floor, and the report says so.
func TestThreadsAreVaried(t *testing.T) {
	b := newThreadBench(t)
	replayed := b.replay()
	reference := b.suite.Document.Reference
	if th := reference.Threads; th == nil || th.Own != 1 || th.Other != 4 || th.DeclaredBy != attest.ByServer || !(th.Noise["probabilities"] > 0) || reference.Noise["probabilities"] < th.Noise["probabilities"] ||
		!slices.Contains(reference.Perturbations, "on 4 instead of 1 threads") {
		t.Errorf("reference: %+v, %+v", reference, th)
	}
	if n := b.another.Requests(); n != 71 {
		t.Errorf("the reference was asked %d times on another number of threads", n)
	}
	if n := b.there.Requests(); n != 32 {
		t.Errorf("the environment was asked %d times on another number of threads", n)
	}
	probes := 0
	for _, o := range replayed.Observations {
		if o.Probe == attest.ProbeThreads {
			probes++
		}
	}
	if n, err := Questions(b.suite, replayed.Plan); probes != 32 || err != nil || n != len(replayed.Observations) {
		t.Errorf("%d probes of %d observations, %d questions were foreseen, %v", probes, len(replayed.Observations), n, err)
	}
	r := judged(t, replayed)
	th := r.Probes.Threads
	if r.Verdict != attest.Certified || th == nil || th.Compared != 32 || !th.Benign || len(th.Spreads) != 1 || th.Spreads[0].Most == "0" || r.Probes.ReferenceThreads == nil {
		t.Fatalf("%s: %v, %+v", r.Verdict, r.Reasons, r.Probes)
	}
	// What moves there is in the floor here, though the environment itself says the same
	// to the bit.
	if r.Numerics[0].BitsDiffer != 0 || r.Numerics[0].CandidateNoise != th.Spreads[0].Most {
		t.Errorf("%+v, %+v", r.Numerics[0], th)
	}
	for form, word := range map[string]string{
		"txt":  "  threads: 32 cases asked on 2 instead of 1, as the server declares (probabilities is off by ",
		"html": "varied at the reference from 1 to 4",
		"json": `"referenceThreads":{"declaredBy":"server","other":4,"own":1}`,
	} {
		var out strings.Builder
		if err := WriteForm(&out, form, r); err != nil || !strings.Contains(out.String(), word) {
			t.Errorf("%s: %v: %q is not in\n%s", form, err, word, out.String())
		}
	}
}

// Where threads are not varied the report says so.
func TestThreadsThatAreNotVaried(t *testing.T) {
	r := judged(t, second(newBench(t, scorer)).replay())
	if r.Verdict != attest.Certified || r.Probes.Threads != nil || r.Probes.ReferenceThreads != nil {
		t.Fatalf("%s: %v, %+v", r.Verdict, r.Reasons, r.Probes)
	}
	var out strings.Builder
	WriteReport(&out, r)
	if !strings.Contains(out.String(), "threads: not varied, neither in this environment nor at the reference: what another number of them does to the answers is not known") {
		t.Error(out.String())
	}
	b := newThreadBench(t)
	if err := b.record(); err != nil {
		t.Fatal(err)
	}
	one := &bench{t: t, suite: b.suite, server: b.here, dir: t.TempDir()}
	out.Reset()
	WriteReport(&out, judged(t, one.replay()))
	if !strings.Contains(out.String(), "threads: not varied in this environment; varied at the reference from 1 to 4") {
		t.Error(out.String())
	}
}

// A second endpoint that is not the same but for its threads is refused before
// anything is planned.
func TestNoiseEndpointsThatAreRefused(t *testing.T) {
	here := declaring(t, 1, scorer)
	silent := targettest.NewServer(t, scorer)
	for name, tc := range map[string]struct {
		there      *targettest.Server
		own, other int
		want       string // "" is to take it
	}{
		"another number":                   {declaring(t, 2, scorer), 0, 0, ""},
		"another number, as the operator":  {declaring(t, 2, scorer), 1, 2, ""},
		"the same number":                  {declaring(t, 1, scorer), 0, 0, "both endpoints run on 1, so that nothing is varied"},
		"the same number, by the operator": {silent, 1, 1, "both endpoints run on 1"},
		"nobody says":                      {silent, 0, 0, "does not declare on how many threads"},
		"the operator says":                {silent, 0, 2, ""},
		"the operator contradicts":         {declaring(t, 2, scorer), 1, 4, "declares 2 threads, and not 4"},
		"the operator contradicts, here":   {declaring(t, 2, scorer), 2, 2, "declares 1 threads, and not 2"},
		"itself":                           {here, 0, 0, "the noise endpoint is the target itself"},
		"another precision": {func() *targettest.Server {
			s := declaring(t, 2, scorer)
			s.Precision = "int8"
			return s
		}(), 0, 0, `precision is "fp32" here and "int8" at the noise endpoint`},
		"another stack": {func() *targettest.Server {
			s := declaring(t, 2, scorer)
			s.Triton = true
			return s
		}(), 0, 0, "the two endpoints are not the same but for their threads: parameter config.backend is "},
	} {
		o, err := FindThreads(t.Context(), targetOf(here), tc.there.URL, tc.own, tc.other)
		if tc.want == "" && (err != nil || o.Own != 1 || o.Other != 2 || (o.DeclaredBy == attest.ByOperator) != (tc.there == silent)) ||
			tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
	if _, err := FindThreads(t.Context(), targetOf(here), "http://127.0.0.1:1", 0, 0); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("down: %v", err)
	}
	// A plan cannot say what was not so found.
	plan, _, _ := newBench(t, scorer).plan()
	for name, o := range map[string]attest.OtherThreads{
		"itself": {URL: plan.Target.URL, Threads: attest.Threads{Own: 1, Other: 2, DeclaredBy: attest.ByServer}},
		"same":   {URL: "http://x", Threads: attest.Threads{Own: 2, Other: 2, DeclaredBy: attest.ByServer}},
		"none":   {URL: "http://x", Threads: attest.Threads{Own: 0, Other: 2, DeclaredBy: attest.ByServer}},
		"nobody": {URL: "http://x", Threads: attest.Threads{Own: 1, Other: 2}},
	} {
		p := plan
		p.Probes, p.Threads = 8, &o
		if p.Validate() == nil {
			t.Errorf("%s: %+v is a plan", name, o)
		}
	}
}

// coarse is the model with its weights in few bits: what a noise endpoint must not
// pass for another number of threads.
func coarse(in []float32) []float32 {
	p := scorer([]float32{float32(math.Round(float64(in[0])*16)) / 16, float32(math.Round(float64(in[1])*16)) / 16})[1]
	return []float32{1 - p, p}
}

// ulps is another number of threads, which moves sums by n units in the last place.
func ulps(n int) func([]float32) []float32 {
	return func(in []float32) []float32 {
		p := scorer(in)[1]
		for range n {
			p = math.Nextafter32(p, 1)
		}
		return []float32{1 - p, p}
	}
}

// A noise endpoint of another precision, which says that it differs in its threads
// alone, widens no tolerance: at the reference it is refused, in a suite that was
// made by hand too, and in an environment nothing can be concluded.
func TestADishonestNoiseEndpointWidensNothing(t *testing.T) {
	b := newThreadBench(t)
	b.another = declaring(t, 4, coarse)
	if err := b.record(); err == nil || !strings.Contains(err.Error(), "is taken for noise") {
		t.Errorf("a reference with a noise endpoint of another precision: %v", err)
	}
	// Whoever writes it into a suite all the same is refused where the suite is read.
	b = newThreadBench(t)
	if err := b.record(); err != nil {
		t.Fatal(err)
	}
	reference := &b.suite.Document.Reference
	reference.Threads.Noise["probabilities"], reference.Noise["probabilities"] = 0.01, 0.01
	if err := b.suite.check(); err == nil || !strings.Contains(err.Error(), "is taken for noise") {
		t.Errorf("a suite whose floor another precision widened: %v", err)
	}
	reference.Threads.Noise["probabilities"] = 1e-7 // and what it says does not add up
	if err := b.suite.check(); err == nil || !strings.Contains(err.Error(), "not the larger one") {
		t.Errorf("a suite whose floor nobody measured: %v", err)
	}

	// Where the tolerance is the noise's alone: honest threads are in it, others not.
	tight := func(there func([]float32) []float32) *threadBench {
		b := newThreadBench(t)
		b.criteria.Outputs[0].Absolute = 1e-9
		b.there = declaring(t, 2, there)
		return b
	}
	want := judged(t, tight(scorer).replay())
	if r := judged(t, tight(ulps(4)).replay()); r.Verdict != attest.Certified || number(r.Numerics[0].Tolerance) <= number(want.Numerics[0].Tolerance) || r.Numerics[0].CandidateNoise != r.Probes.Threads.Spreads[0].Most {
		t.Errorf("%s: %v, %+v: the tolerance without that noise is %s", r.Verdict, r.Reasons, r.Numerics[0], want.Numerics[0].Tolerance)
	}
	r := judged(t, tight(coarse).replay())
	if r.Verdict != attest.Inconclusive || r.Probes.Threads.Benign || !strings.Contains(strings.Join(r.Reasons, "; "), "the noise endpoint is another model or precision") {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Probes.Threads)
	}
	if r.Numerics[0].Tolerance != want.Numerics[0].Tolerance || r.Numerics[0].CandidateNoise != want.Numerics[0].CandidateNoise {
		t.Errorf("the tolerance is %s, and without it %s", r.Numerics[0].Tolerance, want.Numerics[0].Tolerance)
	}
	// The precision that it was to let pass is rejected with it as without it.
	b = newThreadBench(t)
	b.here, b.there = declaring(t, 1, coarse), declaring(t, 2, coarse)
	if r := judged(t, b.replay()); r.Verdict != attest.Rejected || !r.Probes.Threads.Benign {
		t.Errorf("another precision on both endpoints: %s %v, %+v", r.Verdict, r.Reasons, r.Probes.Threads)
	}
	// Just within the limit it widens the tolerance by the ratio that the criteria
	// state, and no further.
	b = newThreadBench(t)
	if err := b.record(); err != nil {
		t.Fatal(err)
	}
	b.there = declaring(t, 2, func(in []float32) []float32 {
		p := scorer(in)[1] + 9e-6 // below the absolute tolerance of 1e-5
		return []float32{1 - p, p}
	})
	r = judged(t, b.replay())
	most := math.Max(1e-5, 8*4*b.suite.Document.Reference.Noise["probabilities"])
	if number(r.Numerics[0].Tolerance) > most || !r.Probes.Threads.Benign {
		t.Errorf("the tolerance is %s, and at most %g is allowed: %+v", r.Numerics[0].Tolerance, most, r.Probes.Threads)
	}
}

// What was planned has to be so when it is asked, and in the record.
func TestThreadsThatWereNotAsked(t *testing.T) {
	b := newThreadBench(t)
	r := judged(t, b.replay(func(*attest.Plan) { b.there.Threads = 1 }))
	if r.Verdict != attest.Inconclusive || !strings.Contains(strings.Join(r.Reasons, "; "), "2 threads were planned, and it declares 1") {
		t.Errorf("an endpoint that was started again: %s %v", r.Verdict, r.Reasons)
	}
	b.there.Threads = 2
	replayed := b.replay()
	without := func(change func(r *Replayed)) attest.Report {
		x := *replayed
		x.Observations, x.Replay.Preflight = slices.Clone(replayed.Observations), slices.Clone(replayed.Replay.Preflight)
		change(&x)
		return judged(t, &x)
	}
	if r := without(func(*Replayed) {}); r.Verdict != attest.Certified {
		t.Fatalf("%s: %v", r.Verdict, r.Reasons)
	}
	for name, change := range map[string]func(r *Replayed){
		"its pre-flight": func(r *Replayed) {
			r.Replay.Preflight = slices.DeleteFunc(r.Replay.Preflight, func(c attest.PreflightCheck) bool { return c.Name == checkThreads })
		},
		"a probe": func(r *Replayed) {
			i := slices.IndexFunc(r.Observations, func(o attest.Observation) bool { return o.Probe == attest.ProbeThreads })
			r.Observations = slices.Delete(r.Observations, i, i+1)
			r.Replay.Observations--
		},
		"an answer": func(r *Replayed) {
			i := slices.IndexFunc(r.Observations, func(o attest.Observation) bool { return o.Probe == attest.ProbeThreads })
			o := &r.Observations[i]
			o.Status, o.Header, o.Response, o.Error = 0, nil, nil, &attest.ObservationError{Class: "timeout", Message: "no answer in 30 s"}
		},
	} {
		if r := without(change); r.Verdict != attest.Inconclusive {
			t.Errorf("without %s: %s %v", name, r.Verdict, r.Reasons)
		}
	}
	// Nobody asked of a plan without them is in the record of one with them.
	if r := without(func(r *Replayed) { r.Plan.Threads = nil }); r.Verdict != attest.Rejected {
		t.Errorf("probes that were not planned: %s %v", r.Verdict, r.Reasons)
	}
}

// Of texts it is decisions, and the log probabilities that ties are known by.
func TestThreadsOfTexts(t *testing.T) {
	b := newTextBench(t, textCandidates(withLogprobs), textCriteria(attest.TextCriteria{Decision: attest.DecideText, Tie: 1e-3}))
	b.server.Threads = 1
	there := targettest.NewOpenAI(t)
	there.Threads = 2
	record := func() (*Suite, error) {
		o, err := FindThreads(t.Context(), b.target, there.URL+"/v1", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		b.options.Threads = &o
		tg, err := Open(b.target)
		if err != nil {
			t.Fatal(err)
		}
		return Record(t.Context(), tg, RecordOptions{Name: "suite", Model: attest.ResourceOf("", digest.FromString("model")), Target: b.target, Candidates: textCandidates(withLogprobs),
			Claim: textClaim, Border: textBorder, Criteria: b.suite.Criteria, DataClassification: "synthetic", Threads: &o, Clock: time.Now})
	}
	suite, err := record()
	if err != nil || suite.Document.Reference.Threads == nil || there.Requests() != textClaim+textBorder {
		t.Fatalf("%v, %d requests", err, there.Requests())
	}
	b.suite = suite
	if r := judged(t, b.replay(nil)); r.Verdict != attest.Certified || r.Probes.Used != 64 || r.Probes.Threads.Compared != 32 || len(r.Probes.Threads.Spreads) != 3 {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Probes)
	}
	// The noise endpoint says something else.
	there.SetMisbehave(func(n int) string { return "silent-canary" })
	r := judged(t, b.replay(nil))
	if r.Verdict != attest.Inconclusive || r.Probes.Threads.Benign || r.Texts.Unstable != 0 || !strings.Contains(strings.Join(r.Reasons, "; "), "decision of the answers is off by 1, and at most 0.05 is taken for noise") {
		t.Errorf("%s: %v, %+v", r.Verdict, r.Reasons, r.Probes)
	}
	if _, err := record(); err == nil || !strings.Contains(err.Error(), "decision of its answers is off by 1, and at most 0.05 is taken for noise") {
		t.Errorf("%v", err)
	}
}

// A suite with threads comes back out of its artifact as it was.
func TestThreadsInAnArtifact(t *testing.T) {
	b := newThreadBench(t)
	if err := b.record(); err != nil {
		t.Fatal(err)
	}
	read := stored(t, b.suite)
	if x := read.Document.Reference.Threads; x == nil || x.Noise["probabilities"] != b.suite.Document.Reference.Threads.Noise["probabilities"] {
		t.Errorf("%+v", x)
	}
	replayed := b.replay()
	a, err := PlanArtifact(replayed.Plan, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("model"), Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	var plan attest.Plan
	if err := attest.Unmarshal(a.file(filePlan), &plan); err != nil || plan.Threads == nil || *plan.Threads != *replayed.Plan.Threads {
		t.Errorf("%+v, %v", plan.Threads, err)
	}
}
