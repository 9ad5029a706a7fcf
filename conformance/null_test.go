package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// Whole replays, over HTTP, through replay and judge. The environment flips each
// decision with the probability that is the margin, which is the null hypothesis
// of a certificate: it must be certified as often as the plan states, about
// alpha, and not more. And one that differs in the low bits only is never
// refused.
func TestFalseAlarmsOfWholeReplays(t *testing.T) {
	runs := 30
	if soak() {
		runs = 1000
	}
	var round atomic.Int64
	at := func(margin float64) func([]float32) []float32 {
		return func(in []float32) []float32 {
			p := scorer(in)
			h := fnv.New64a()
			// The same question flips again when it is asked again, or moved
			// by an ulp: this is a model that differs, and no noise.
			fmt.Fprintf(h, "%d %.2f %.2f", round.Load(), in[0], in[1])
			// FNV leaves the upper bits of short texts alike; one more product
			// mixes them.
			if float64(h.Sum64()*0x9e3779b97f4a7c15>>11)/(1<<53) < margin {
				return []float32{p[1], p[0]}
			}
			return p
		}
	}
	b := second(newBench(t, at(0.05)))
	b.suite.Criteria.Outputs[0].Absolute = 2 // decisions are what is tested, and border cases that flip are ties
	certified := 0
	for i := range runs {
		round.Store(int64(i))
		b.dir = t.TempDir()
		r := judged(t, b.replay())
		if r.Verdict == attest.Certified {
			certified++
		} else if r.Verdict != attest.Rejected {
			t.Fatalf("round %d: %s: %v", i, r.Verdict, r.Reasons)
		}
	}
	exact := stats.AtMost(0, 59, 0.05)
	if lower, upper := stats.Interval(certified, runs, 0.001); exact < lower || exact > upper || exact > 0.05 {
		t.Errorf("%d of %d certified at the margin: [%v, %v] does not hold %v", certified, runs, lower, upper, exact)
	}
	t.Logf("%d of %d certified at the margin; the plan states %.4f", certified, runs, exact)
	benign := second(newBench(t, rounding), close...)
	for range runs / 3 {
		benign.dir = t.TempDir()
		if r := judged(t, benign.replay()); r.Verdict != attest.Certified {
			t.Errorf("a benign environment: %s: %v", r.Verdict, r.Reasons)
		}
	}
}

// manyCases makes a record of n cases without asking anybody.
func manyCases(tb testing.TB, n int) *Replayed {
	allowed := 0
	plan := attest.BinomialPlan{Margin: 0.001, Alpha: 0.05, Beta: 0.2, N: n, Allowed: allowed}
	s := &Suite{Criteria: criteria(n, 0), Tensors: map[string]compare.Tensor{}}
	s.Criteria.Plan = plan
	s.Criteria.Version, s.Criteria.Noise = 2, &attest.NoiseCriteria{Ratio: 4}
	s.Criteria.Limits = close
	s.Document = attest.Suite{
		Name: "many", Model: attest.ResourceOf("", digest.FromString("model")), Protocol: oip.Name, DataClassification: "synthetic", Claim: n, CreatedAt: start,
		Inputs: []attest.TensorSpec{{Name: "features", Datatype: "FP32", Shape: []int64{-1, 2}}}, Outputs: []attest.TensorSpec{{Name: "probabilities", Datatype: "FP32", Shape: []int64{-1, 2}}},
		Reference: attest.Reference{ServedModel: "m", RecordedAt: start, Noise: map[string]float64{"probabilities": 6e-8}, Measured: n},
	}
	shape := []int64{1, 2}
	r := &Replayed{Suite: s, PlanDigest: digest.FromString("plan")}
	tgt := attest.Target{Protocol: oip.Name, URL: "http://127.0.0.1:1", Model: "m", Version: "1"}
	answer := func(id string, rows ...[]float32) []byte {
		var data []string
		for _, row := range rows {
			for _, v := range row {
				data = append(data, strconv.FormatFloat(float64(v), 'g', -1, 32))
			}
		}
		return fmt.Appendf(nil, `{"model_name":"m","model_version":"1","id":%q,"outputs":[{"name":"probabilities","shape":[%d,2],"datatype":"FP32","data":[%s]}]}`, id, len(rows), strings.Join(data, ","))
	}
	row := func(t compare.Tensor) []float32 {
		return []float32{math.Float32frombits(binary.LittleEndian.Uint32(t.Bits)), math.Float32frombits(binary.LittleEndian.Uint32(t.Bits[4:]))}
	}
	for i := range n {
		c := attest.Case{ID: fmt.Sprintf("case-%06d", i), Stratum: attest.StratumClaim, Slice: map[string]string{"segment": []string{"young", "old"}[i%2]}}
		in := targettest.FP32("features", shape, float32(math.Sin(float64(i))*2), float32(math.Cos(float64(7*i))))
		request, err := oip.Protocol{}.Encode(target.Question{ID: c.ID, Model: tgt.Model, Version: tgt.Version, Inputs: []compare.Tensor{in}, Outputs: []string{"probabilities"}})
		if err != nil {
			tb.Fatal(err)
		}
		c.Request = string(digest.FromBytes(request))
		s.Cases = append(s.Cases, c)
		s.Tensors[c.InputTensor("features")] = in
		s.Tensors[c.OutputTensor("probabilities")] = targettest.FP32("probabilities", shape, scorer(row(in))...)
		r.Observations = append(r.Observations, attest.Observation{
			Case: c.ID, Attempt: 1, Request: c.Request, SentAt: start.Add(time.Duration(i) * time.Millisecond), ReceivedAt: start.Add(time.Duration(i)*time.Millisecond + 700*time.Microsecond),
			Status: 200, Response: answer(c.ID, rounding(row(in))),
		})
	}
	a, err := s.Artifact()
	if err != nil {
		tb.Fatal(err)
	}
	r.Environment = attest.Environment{Name: "prod-eu", Target: tgt, Fingerprint: map[string]attest.FingerprintField{}, RecordedAt: start}
	r.Plan, err = NewPlan(PlanOptions{
		Model: digest.FromString("model"), Suite: s, SuiteDigest: a.Descriptor.Digest, CriteriaDigest: digest.FromBytes(a.file(fileCriteria)),
		Environment: r.Environment, EnvironmentDigest: digest.FromString("env"), Now: start,
	})
	if err != nil {
		tb.Fatal(err)
	}
	probes, err := s.probes(r.Plan, oip.Protocol{})
	if err != nil {
		tb.Fatal(err)
	}
	for _, p := range probes {
		var rows [][]float32
		for _, c := range p.cases {
			rows = append(rows, rounding(row(s.Tensors[c.InputTensor("features")])))
		}
		r.Observations = append(r.Observations, attest.Observation{
			Case: p.cases[0].ID, Attempt: 1, Probe: p.kind, Request: string(digest.FromBytes(p.request)), SentAt: start, ReceivedAt: start, Status: 200, Response: answer(p.question.ID, rows...),
		})
	}
	r.Replay = attest.Replay{
		Plan: attest.ResourceOf(attest.PlanType, r.PlanDigest), Model: r.Plan.Model, Environment: r.Plan.Environment, StartedAt: start, FinishedAt: start.Add(time.Hour),
		Observations: len(r.Observations), Preflight: []attest.PreflightCheck{{Name: "answers", Passed: true}},
	}
	return r
}

// judgeFiles is the child of BenchmarkJudge: it reads a record as 'assay judge'
// does, judges it, and says how long that took and how much memory.
func judgeFiles(dir string) {
	done := make(chan int)
	most := make(chan int)
	go func() {
		peak := 0
		for {
			raw, _ := os.ReadFile("/proc/self/status")
			for _, line := range strings.Split(string(raw), "\n") {
				if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
					n, _ := strconv.Atoi(strings.Fields(v)[0])
					peak = max(peak, n)
				}
			}
			select {
			case <-done:
				most <- peak
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	fetch := func(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, d.Digest.Encoded()))
	}
	raw, err := os.ReadFile(filepath.Join(dir, "replay"))
	var desc ocispec.Descriptor
	if err == nil {
		err = json.Unmarshal(raw, &desc)
	}
	if err != nil {
		panic(err)
	}
	began := time.Now()
	r, kept, err := ReadReplayed(context.Background(), fetch, desc, func(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
		return ocispec.Descriptor{Digest: d}, nil
	})
	if err != nil {
		panic(err)
	}
	read := time.Since(began)
	began = time.Now()
	report, err := Judge(r)
	if err != nil {
		panic(err)
	}
	again, err := attest.Marshal(report)
	if err != nil || !bytes.Equal(again, kept) {
		panic(fmt.Sprint("another report than the stored one ", err))
	}
	took := time.Since(began)
	done <- 1
	fmt.Printf("%s %d %f %f %d\n", report.Verdict, report.Cases.Compared, read.Seconds(), took.Seconds(), <-most)
}

// BenchmarkJudge reads and judges 100,000 cases in a process of its own. The
// limits: under 10 s, and under 300 MiB of anonymous memory.
func BenchmarkJudge(b *testing.B) {
	const cases = 100_000
	dir := b.TempDir()
	r := manyCases(b, cases)
	model := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("model"), Size: 1}
	write := func(a *Artifact, err error) *Artifact {
		if err != nil {
			b.Fatal(err)
		}
		for _, blob := range append(a.Blobs, Blob{a.Descriptor, a.Manifest}) {
			if err := os.WriteFile(filepath.Join(dir, blob.Descriptor.Digest.Encoded()), blob.Data, 0o644); err != nil {
				b.Fatal(err)
			}
		}
		return a
	}
	write(r.Suite.Artifact())
	r.PlanDigest = write(PlanArtifact(r.Plan, model)).Descriptor.Digest
	r.Replay.Plan = attest.ResourceOf(attest.PlanType, r.PlanDigest)
	raw, err := json.Marshal(write(r.Artifact(model)).Descriptor)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "replay"), raw, 0o644)
	}
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ASSAY_TEST_JUDGE_FILES="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		var verdict string
		var compared, anonymous int
		var read, judged float64
		if _, err := fmt.Sscan(string(out), &verdict, &compared, &read, &judged, &anonymous); err != nil || verdict != "CERTIFIED" || compared != cases {
			b.Fatalf("%v\n%s", err, out)
		}
		b.ReportMetric(read, "read-s")
		b.ReportMetric(judged, "judge-s(limit-10)")
		b.ReportMetric(float64(anonymous)/1024, "anonymous-MiB(limit-300)")
	}
}
