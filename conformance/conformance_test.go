package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// TestMain is also the child of TestAVerdictCanBeMadeAgain: another process,
// with other settings, that judges what it reads.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ASSAY_TEST_REPLAY"); dir != "" {
		replayChild(dir)
		return
	}
	if dir := os.Getenv("ASSAY_TEST_JUDGE_FILES"); dir != "" {
		judgeFiles(dir)
		return
	}
	if os.Getenv("ASSAY_TEST_JUDGE") == "" {
		os.Exit(m.Run())
	}
	os.Stdout.WriteString(everyBit())
	for in := json.NewDecoder(os.Stdin); in.More(); {
		var r Replayed
		if err := in.Decode(&r); err != nil {
			panic(err)
		}
		report, err := Judge(&r)
		if err != nil {
			panic(err)
		}
		raw, err := attest.Marshal(report)
		if err != nil {
			panic(err)
		}
		os.Stdout.Write(raw)
	}
}

// everyBit computes all kinds of numbers and returns their bits. A report shows 9
// digits, behind which a difference in the last bit hides until it reaches one of
// them: here it does not.
func everyBit() string {
	var out strings.Builder
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 20 {
		w, g := make([]float32, 700), make([]float32, 700)
		x := make([]float64, 40)
		p, q := make([]float64, 5), make([]float64, 5)
		for i := range w {
			w[i] = rng.Float32()
			g[i] = w[i] + rng.Float32()/1000
		}
		for i := range x {
			x[i] = rng.Float64() / 3
		}
		for i := range p {
			p[i], q[i] = (1+x[i])/6, (1+x[i+5])/6
		}
		d := compare.Tensors(targettest.FP32("x", []int64{700}, w...), targettest.FP32("x", []int64{700}, g...), compare.Tolerance{Absolute: 1e-4, Relative: 1e-4})
		var fp64 [2]compare.Tensor // of which the products are not exact, as those of FP32 are
		for k := range fp64 {
			fp64[k] = compare.Tensor{Name: "x", Datatype: "FP64", Shape: []int64{20}}
			for _, v := range x[20*k : 20*k+20] {
				fp64[k].Bits = binary.LittleEndian.AppendUint64(fp64[k].Bits, math.Float64bits(v))
			}
		}
		long := compare.Tensors(fp64[0], fp64[1], compare.Tolerance{Absolute: 1e-3, Relative: 1e-2})
		pq, err1 := compare.Probabilities(p, q, 1)
		e, err2 := compare.Embeddings(x[:20], x[20:])
		m, err3 := stats.Equivalence(x, 0.3, 0.05, 0.2)
		b, err4 := stats.Bootstrap(len(x), 100, 0.05, stats.NewGenerator("bits", fmt.Sprint(round)), func(drawn []int) float64 {
			sum := 0.0
			for _, i := range drawn {
				sum += float64(x[i] * x[i])
			}
			return math.Sqrt(sum)
		})
		mmd, err5 := stats.MMD([]stats.Samples{{Want: [][]int32{{1, 2, 3}, {1, 2}}, Got: [][]int32{{2, int32(round)}, {1, 3}}}}, 99, stats.NewGenerator("bits", fmt.Sprint(round)))
		ones := make([]float64, len(x))
		for i := range ones {
			ones[i] = float64(1 + i%3)
		}
		c, err6 := stats.Clustered(x, ones, 2, 0.3, 0.05, 0.2, 199, stats.NewGenerator("bits", fmt.Sprint(round)))
		if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
			panic(err)
		}
		for _, v := range []float64{d.MaxAbs, d.MaxScaled, d.Error, d.SquaredError, d.SquaredGot, d.Product, d.Cosine(), d.SNR(), long.SquaredError, long.SquaredWant, long.Product, long.MaxScaled, pq.KL, pq.JS, pq.Hellinger, e.Cosine, e.Norm,
			m.Mean, m.StandardError, m.Upper, m.P, m.Unseen, b.Lower, b.Upper, mmd.Distance, mmd.P, mmd.Alike, c.Mean, c.StandardError, c.Lower, c.Upper, c.P, c.Beyond, c.Unseen} {
			fmt.Fprintf(&out, "%016x\n", math.Float64bits(v))
		}
	}
	return out.String()
}

// scorer approves what is likely enough, as a credit model does.
func scorer(in []float32) []float32 {
	p := float32(1 / (1 + math.Exp(-float64(3*in[0]-2*in[1]))))
	return []float32{1 - p, p}
}

// shifted is the same model with something wrong in it.
func shifted(by float64) func([]float32) []float32 {
	return func(in []float32) []float32 {
		p := float32(1 / (1 + math.Exp(-float64(3*in[0]-2*in[1])-by)))
		return []float32{1 - p, p}
	}
}

// rounding is another runtime: the low bits differ.
func rounding(in []float32) []float32 {
	p := scorer(in)[1]
	p = math.Nextafter32(p, 1)
	return []float32{1 - p, p}
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func criteria(n, allowed int) attest.Criteria {
	return attest.Criteria{
		Version: 1,
		Outputs: []attest.OutputCriteria{{
			Output: "probabilities", Absolute: 1e-5, Relative: 1e-5, NoiseFactor: 8,
			Decision: attest.Decision{Kind: attest.DecideThreshold, Labels: []string{"decline", "approve"}, Index: 1, Threshold: 0.5},
		}},
		Plan: attest.BinomialPlan{Margin: 0.05, Alpha: 0.05, Beta: 0.2, N: n, Allowed: allowed},
	}
}

func candidates(n int) []Candidate {
	rng := rand.New(rand.NewPCG(1, 2))
	var list []Candidate
	for i := range n {
		number := func() json.Number { return json.Number(fmt.Sprint(float32(rng.NormFloat64()))) }
		list = append(list, Candidate{
			ID:     fmt.Sprintf("case-%04d", i),
			Inputs: map[string]CandidateTensor{"features": {Datatype: "FP32", Shape: []int64{1, 2}, Data: []json.Number{number(), number()}}},
			Slice:  map[string]string{"segment": []string{"young", "old"}[i%2]},
		})
	}
	return list
}

func targetOf(s *targettest.Server) attest.Target {
	return attest.Target{Protocol: oip.Name, URL: s.URL, Model: "m", Version: "1"}
}

func connect(t testing.TB, s *targettest.Server) target.Target {
	tg, err := Open(targetOf(s))
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

// The test's suite: 59 claim cases with no flip allowed exclude a rate of 5 %.
func record(t testing.TB) *Suite {
	t.Helper()
	s := targettest.NewServer(t, scorer)
	suite, err := Record(t.Context(), connect(t, s), RecordOptions{
		Name: "scorer", Model: attest.ResourceOf("", digest.FromString("model")), Target: targetOf(s),
		Candidates: candidates(120), Claim: 59, Border: 12, Criteria: criteria(59, 0), DataClassification: "synthetic",
		Clock: func() time.Time { return start },
	})
	if err != nil {
		t.Fatal(err)
	}
	return suite
}

type bench struct {
	t      testing.TB
	suite  *Suite
	server *targettest.Server
	dir    string
	retry  int
}

func newBench(t testing.TB, model func([]float32) []float32) *bench {
	return &bench{t: t, suite: record(t), server: targettest.NewServer(t, model), dir: t.TempDir()}
}

func (b *bench) plan() (attest.Plan, digest.Digest, attest.Environment) {
	b.t.Helper()
	a, err := b.suite.Artifact()
	if err != nil {
		b.t.Fatal(err)
	}
	env := attest.Environment{Name: "prod-eu", Target: targetOf(b.server), Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: start}
	plan, err := NewPlan(PlanOptions{
		Model: digest.FromString("model"), Suite: b.suite, SuiteDigest: a.Descriptor.Digest, CriteriaDigest: digest.FromBytes(a.file(fileCriteria)),
		Environment: env, EnvironmentDigest: digest.FromString("env"), Timeout: 250 * time.Millisecond, Retries: b.retry, Now: start,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return plan, digest.FromString("plan"), env
}

func (b *bench) replay() *Replayed {
	b.t.Helper()
	plan, d, env := b.plan()
	replay, observations, err := Replay(b.t.Context(), b.suite, plan, d, connect(b.t, b.server), ReplayOptions{Dir: b.dir, Clock: func() time.Time { return time.Now() }})
	if err != nil {
		b.t.Fatal(err)
	}
	return &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations}
}

func judged(t testing.TB, r *Replayed) attest.Report {
	t.Helper()
	report, err := Judge(r)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestTheSameModelIsCertified(t *testing.T) {
	for name, model := range map[string]func([]float32) []float32{"same runtime": scorer, "other low bits": rounding} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, model)
			r := judged(t, b.replay())
			if r.Verdict != attest.Certified || len(r.Reasons) != 0 || r.Cases.Compared != 71 || r.Cases.Elements != 142 {
				t.Errorf("%+v", r)
			}
			if bits := r.Numerics[0].BitsDiffer; (bits > 0) != (name == "other low bits") {
				t.Errorf("%d numbers differ in their bits", bits)
			}
			if !strings.Contains(r.Claim, "at most 5 % of decisions") || !strings.Contains(r.Claim, "95 % confidence: 0 of 59") {
				t.Errorf("claim %q", r.Claim)
			}
		})
	}
}

func TestAnotherModelIsRejected(t *testing.T) {
	r := judged(t, newBench(t, shifted(1)).replay())
	if r.Verdict != attest.Rejected || len(r.Flips) != 1 || r.Flips[0].To != "approve" {
		t.Fatalf("%+v", r)
	}
	if want := fmt.Sprintf("%d of 59 decisions flip, all of them to approve", r.Flips[0].Cases); !strings.Contains(r.Difference, want) {
		t.Errorf("difference %q, want %q", r.Difference, want)
	}
	if bias := r.Numerics[0].Bias; bias == "" || strings.HasPrefix(bias, "-") || bias == "0" {
		t.Errorf("the scores are shifted upwards, and the bias is %q", bias)
	}
	// No decision flips, but the numbers are off: that is a difference too.
	r = judged(t, newBench(t, shifted(1e-3)).replay())
	if r.Verdict != attest.Rejected {
		t.Errorf("a small shift: %+v", r)
	}
}

// Every way to answer badly, once, in the middle: never a pass.
func TestEveryFault(t *testing.T) {
	noAnswer := map[string]bool{"truncated": true, "http-500": true, "http-429": true, "hang": true, "close": true, "empty": true}
	for _, fault := range targettest.Faults {
		t.Run(fault, func(t *testing.T) {
			b := newBench(t, scorer)
			b.retry = 2
			b.server.SetMisbehave(func(n int) string {
				if n == 30 {
					return fault
				}
				return ""
			})
			replayed := b.replay()
			r := judged(t, replayed)
			want := attest.Rejected
			if noAnswer[fault] {
				// It answers well when it is asked again; the verdict is on
				// the first attempt all the same.
				want = attest.Inconclusive
				if len(replayed.Observations) != 72 || r.Cases.Retried != 1 {
					t.Errorf("%d observations, %d cases retried", len(replayed.Observations), r.Cases.Retried)
				}
			}
			if r.Verdict != want || len(r.Reasons) == 0 {
				t.Errorf("%s: %v, want %s", r.Verdict, r.Reasons, want)
			}
			t.Log(r.Claim)
		})
	}
}

func TestAnEnvironmentThatDies(t *testing.T) {
	b := newBench(t, scorer)
	b.server.SetMisbehave(func(n int) string {
		if n > 40 {
			return "close"
		}
		return ""
	})
	r := judged(t, b.replay())
	if r.Verdict != attest.Inconclusive || r.Cases.Failed == 0 || r.Cases.Compared == 0 {
		t.Errorf("%+v", r)
	}
}

func TestAnEnvironmentThatIsDown(t *testing.T) {
	b := newBench(t, scorer)
	b.server.Close()
	if r := judged(t, b.replay()); r.Verdict != attest.Inconclusive || r.Cases.Compared != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := connect(t, b.server).Describe(t.Context()); err == nil {
		t.Error("an environment that is down describes itself")
	}
}

func TestAConstantAnswerFailsPreflight(t *testing.T) {
	r := judged(t, newBench(t, func([]float32) []float32 { return []float32{0.5, 0.5} }).replay())
	if !slices.ContainsFunc(r.Reasons, func(s string) bool { return strings.Contains(s, "different questions") }) {
		t.Errorf("reasons %q", r.Reasons)
	}
}

// A runner that is stopped goes on where it was, and asks nothing twice.
func TestReplayGoesOn(t *testing.T) {
	b := newBench(t, scorer)
	plan, d, env := b.plan()
	ctx, cancel := context.WithCancel(t.Context())
	done := 0
	opt := ReplayOptions{Dir: b.dir, Clock: time.Now, Progress: func(n int) {
		if done += n; done == 20 {
			cancel()
		}
	}}
	if _, _, err := Replay(ctx, b.suite, plan, d, connect(t, b.server), opt); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	// The end of a line that was being written.
	f, err := os.OpenFile(filepath.Join(b.dir, fileObservations), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"case":"case-00`)
	f.Close()
	replay, observations, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	preflights := 2 * 2
	if asked := b.server.Requests() - preflights; asked != 71 || len(observations) != 71 {
		t.Errorf("%d questions and %d observations for 71 cases", asked, len(observations))
	}
	r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations})
	if r.Verdict != attest.Certified {
		t.Errorf("%+v", r)
	}
}

func rank(v attest.Verdict) int {
	return map[attest.Verdict]int{attest.Rejected: 0, attest.Inconclusive: 1, attest.Certified: 2}[v]
}

// Blank or delete any field of any observation, or the observation itself:
// no verdict gets better.
func TestNothingThatIsMissingImprovesAVerdict(t *testing.T) {
	cases := map[string]*Replayed{"certified": newBench(t, scorer).replay(), "rejected": newBench(t, shifted(0.3)).replay()}
	dying := newBench(t, scorer)
	dying.server.SetMisbehave(func(n int) string {
		if n > 60 {
			return "close"
		}
		return ""
	})
	cases["inconclusive"] = dying.replay()
	barely := newBench(t, scorer)
	n := 0
	barely.server.SetModel(func(in []float32) []float32 {
		if n++; n == 8 { // one case of all
			p := scorer(in)
			return []float32{p[1], p[0]}
		}
		return scorer(in)
	})
	cases["rejected by one case"] = barely.replay()
	cases["certified by criteria of version 2"] = second(newBench(t, scorer), close...).replay()
	for name, r := range cases {
		before := judged(t, r)
		if !strings.HasPrefix(name, strings.ToLower(string(before.Verdict))) {
			t.Fatalf("%s: the verdict is %s: %v", name, before.Verdict, before.Reasons)
		}
		rapid.Check(t, func(rt *rapid.T) {
			i := rapid.IntRange(0, len(r.Observations)-1).Draw(rt, "observation")
			raw, err := json.Marshal(r.Observations[i])
			if err != nil {
				rt.Fatal(err)
			}
			var fields map[string]any
			if err := json.Unmarshal(raw, &fields); err != nil {
				rt.Fatal(err)
			}
			field := rapid.SampledFrom([]string{"case", "attempt", "probe", "request", "sentAt", "receivedAt", "status", "response", "error", "all of it"}).Draw(rt, "field")
			changed := *r
			changed.Observations = slices.Clone(r.Observations)
			if field == "all of it" {
				changed.Observations = slices.Delete(changed.Observations, i, i+1)
			} else {
				delete(fields, field)
				raw, _ = json.Marshal(fields)
				changed.Observations[i] = attest.Observation{}
				if err := json.Unmarshal(raw, &changed.Observations[i]); err != nil {
					rt.Fatal(err)
				}
			}
			after := judged(t, &changed)
			if rank(after.Verdict) > rank(before.Verdict) {
				rt.Errorf("%s: without %s of observation %d the verdict is %s: %v", name, field, i, after.Verdict, after.Reasons)
			}
			if after.Verdict == attest.Certified && !bytes.Equal(mustJSON(r.Observations[i]), mustJSON(at(changed.Observations, i))) {
				rt.Errorf("%s: certified without %s of observation %d", name, field, i)
			}
		})
	}
}

func at(list []attest.Observation, i int) attest.Observation {
	if i < len(list) {
		return list[i]
	}
	return attest.Observation{}
}

func mustJSON(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

// The same record gives the same bytes, whatever the machine is busy with and
// wherever it stands, and after a way through an artifact.
func TestAVerdictCanBeMadeAgain(t *testing.T) {
	r := newBench(t, shifted(0.2)).replay()
	// The same tests, compiled for another processor.
	arm := filepath.Join(t.TempDir(), "conformance.test")
	build := exec.Command("go", "test", "-c", "-o", arm, ".")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	emulator, noEmulator := exec.LookPath("qemu-aarch64-static")
	in, want := []byte{}, []byte(everyBit())
	verdicts := map[attest.Verdict]int{}
	for _, r := range everyKind(t) {
		report := judged(t, r)
		raw, err := attest.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		verdicts[report.Verdict]++
		in, want = append(in, mustJSON(r)...), append(want, raw...)
	}
	if verdicts[attest.Certified] < 2 || verdicts[attest.Rejected] < 3 || verdicts[attest.Inconclusive] < 1 {
		t.Errorf("the verdicts are %v", verdicts)
	}
	for how, cmd := range map[string]*exec.Cmd{
		"GOMAXPROCS=1 TZ=UTC": exec.Command(os.Args[0]), "GOMAXPROCS=2 TZ=Asia/Kolkata": exec.Command(os.Args[0]), "GOMAXPROCS=2 TZ=America/St_Johns": exec.Command(emulator, arm),
	} {
		if cmd.Args[0] == "" {
			continue // said below
		}
		cmd.Env = append(os.Environ(), append(strings.Fields(how), "ASSAY_TEST_JUDGE=1")...)
		cmd.Stdin = bytes.NewReader(in)
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, want) {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			t.Errorf("%v: other bytes from byte %d on (%v): %.80q, want %.80q", cmd, at, err, got[at:], want[at:])
		}
	}
	if noEmulator != nil {
		defer needed(t, "qemu-aarch64-static is not installed: run 'make deps'")
	}
	// Through artifacts.
	content := map[digest.Digest][]byte{}
	descriptors := map[digest.Digest]ocispec.Descriptor{}
	push := func(a *Artifact, err error) *Artifact {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		content[a.Descriptor.Digest], descriptors[a.Descriptor.Digest] = a.Manifest, a.Descriptor
		for _, b := range a.Blobs {
			content[b.Descriptor.Digest] = b.Data
		}
		return a
	}
	model := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("model"), Size: 1}
	push(r.Suite.Artifact())
	planned := push(PlanArtifact(r.Plan, model))
	r.PlanDigest = planned.Descriptor.Digest
	r.Replay.Plan = attest.ResourceOf(attest.PlanType, r.PlanDigest)
	want, _ = attest.Marshal(judged(t, r))
	artifact := push(r.Artifact(model))
	again := push(r.Artifact(model))
	if artifact.Descriptor.Digest != again.Descriptor.Digest {
		t.Error("the same replay has another digest")
	}
	fetch := func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
		raw, ok := content[d.Digest]
		if !ok {
			return nil, fmt.Errorf("no %s", d.Digest)
		}
		return raw, nil
	}
	back, kept, err := ReadReplayed(t.Context(), fetch, artifact.Descriptor, func(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
		return descriptors[d], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := attest.Marshal(judged(t, back))
	if !bytes.Equal(got, want) || !bytes.Equal(kept, want) {
		t.Error("the report is another one after a way through an artifact")
	}
	report, certificate, refusal, err := Certify(back, kept, CertifyOptions{Replay: artifact.Descriptor.Digest, Now: start})
	if err != nil || certificate != nil || refusal == nil || report.Verdict != attest.Rejected {
		t.Errorf("%v, %+v, %+v", err, certificate, refusal)
	}
	if _, _, _, err := Certify(back, append(kept, ' '), CertifyOptions{Replay: artifact.Descriptor.Digest, Now: start}); err == nil {
		t.Error("a stored report that does not come out again was certified")
	}
}

func TestCertificates(t *testing.T) {
	r := newBench(t, scorer).replay()
	kept, _ := attest.Marshal(judged(t, r))
	_, c, refusal, err := Certify(r, kept, CertifyOptions{Replay: digest.FromString("replay"), Now: start})
	if err != nil || refusal != nil || c.Verdict != attest.Certified || !c.Validity.Contains(start) || c.Validity.Contains(start.Add(DefaultValidity)) {
		t.Errorf("%v, %+v, %+v", err, c, refusal)
	}
}

func TestBadSuites(t *testing.T) {
	if _, err := ReadCandidates(strings.NewReader("")); err == nil {
		t.Error("a suite with no cases")
	}
	for name, line := range map[string]string{
		"unknown field": `{"id":"a","inputs":{"x":{"datatype":"FP32","shape":[1],"data":[1]}},"weight":2}`,
		"no inputs":     `{"id":"a","inputs":{}}`,
		"no id":         `{"inputs":{"x":{"datatype":"FP32","shape":[1],"data":[1]}}}`,
		"same id twice": `{"id":"a","inputs":{"x":{"datatype":"FP32","shape":[1],"data":[1]}}}` + "\n" + `{"id":"a","inputs":{"x":{"datatype":"FP32","shape":[1],"data":[1]}}}`,
	} {
		if _, err := ReadCandidates(strings.NewReader(line)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	s := record(t)
	for name, change := range map[string]func(*Suite){
		"no cases":                   func(s *Suite) { s.Cases = nil },
		"fewer cases than claimed":   func(s *Suite) { s.Cases = s.Cases[1:] },
		"a plan that keeps no word":  func(s *Suite) { s.Criteria.Plan.Margin = 0.01 },
		"flips allowed":              func(s *Suite) { s.Criteria.Plan.Allowed = 1 },
		"no noise floor":             func(s *Suite) { s.Document.Reference.Noise = nil },
		"criteria of another output": func(s *Suite) { s.Criteria.Outputs[0].Output = "logits" },
		"no criteria":                func(s *Suite) { s.Criteria.Outputs = nil },
	} {
		bad := *s
		bad.Cases = slices.Clone(s.Cases)
		bad.Criteria.Outputs = slices.Clone(s.Criteria.Outputs)
		change(&bad)
		if _, err := bad.Artifact(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// A null environment, replayed many times: the false alarms lie where the
// stated error puts them. The environment's true flip rate is the plan's
// margin, so it must be certified in at most alpha of all replays.
func TestLevelBySimulation(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const replays = 20_000
	certified := 0
	for range replays {
		flips := 0
		for range 59 {
			if rng.Float64() < 0.05 {
				flips++
			}
		}
		if flips <= 0 {
			certified++
		}
	}
	lower, upper := 1-stats.UpperBound(replays-certified, replays, 0.0005), stats.UpperBound(certified, replays, 0.0005)
	if exact := stats.AtMost(0, 59, 0.05); exact < lower || exact > upper || exact > 0.05 {
		t.Errorf("%d of %d certified: [%v, %v] does not hold %v", certified, replays, lower, upper, exact)
	}
}

// The seeds are made by hand: a suite that is recorded for them would have each
// worker start servers, whose work the fuzzer takes for coverage.
func FuzzReadTensors(f *testing.F) {
	for _, tensors := range []map[string]compare.Tensor{
		{"a/x": {Name: "x", Datatype: "FP32", Shape: []int64{1, 2}, Bits: []byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0x40}}},
		{"a/x": {Name: "x", Datatype: "BOOL", Shape: []int64{1}, Bits: []byte{1}}, "b/x": {Name: "x", Datatype: "BF16", Shape: []int64{0, 3}, Bits: []byte{}}},
	} {
		raw, err := writeTensors(tensors)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		tensors, err := readTensors(data, filepath.Base)
		if err != nil {
			return
		}
		for k, x := range tensors {
			if _, err := x.Values(); err != nil {
				t.Errorf("%s: %v", k, err)
			}
		}
		// What was read is written and read again as the same.
		raw, err := writeTensors(tensors)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readTensors(raw, filepath.Base)
		if err != nil || len(again) != len(tensors) {
			t.Fatalf("%d tensors, and %d of them again: %v", len(tensors), len(again), err)
		}
		for k, x := range tensors {
			y := again[k]
			if x.Name != y.Name || x.Datatype != y.Datatype || !slices.Equal(x.Shape, y.Shape) || !bytes.Equal(x.Bits, y.Bits) {
				t.Errorf("%s: %+v is %+v when it is read again", k, x, y)
			}
		}
	})
}

func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if strings.HasPrefix(p, "github.com/assay-dev/assay/registry") || strings.HasPrefix(p, "github.com/assay-dev/assay/store") {
			t.Errorf("the laboratory imports %s: they meet in OCI artifacts and in verify/attest", p)
		}
	}
}
