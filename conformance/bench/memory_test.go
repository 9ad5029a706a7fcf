package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/verify/attest"
)

// The limits for a hundred thousand cases: anonymous memory of the process that
// replays or judges them, and the time from the start of 'assay judge' to its
// end, which reads them from a registry as well.
const (
	manyCases   = 100_000
	memoryLimit = 300 << 10 // KiB
	judgeLimit  = 10 * time.Second
)

// BenchmarkManyCases replays and judges them with the program itself, against a
// registry and a server in processes of their own, and reads how much memory the
// kernel says it had. It is made once, whatever -benchtime says.
func BenchmarkManyCases(b *testing.B) {
	dir := b.TempDir()
	assay := filepath.Join(dir, "assay")
	if out, err := exec.Command("go", "build", "-C", "../..", "-o", assay, "./cmd/assay").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	ready := filepath.Join(dir, "addr")
	serve := exec.Command(assay, "serve", "--data", filepath.Join(dir, "data"), "--addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--reserve", "1048576", "--ready-file", ready)
	var log bytes.Buffer
	serve.Stdout, serve.Stderr = &log, &log
	if err := serve.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		serve.Process.Kill()
		serve.Wait()
	})
	var server string
	for range 200 {
		var at struct {
			HTTP string `json:"http"`
		}
		if raw, err := os.ReadFile(ready); err == nil && json.Unmarshal(raw, &at) == nil {
			server = at.HTTP
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if server == "" {
		b.Fatalf("no server\n%s", log.String())
	}
	// run runs the program, and returns what it wrote, the most anonymous memory
	// it had in KiB, and how long it took.
	run := func(args ...string) (string, int, time.Duration) {
		cmd := exec.Command(assay, append(args, "--server", server)...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		began := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		for most := 0; ; {
			raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if m := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(raw); m != nil {
				n, _ := strconv.Atoi(string(m[1]))
				most = max(most, n)
			}
			select {
			case err := <-done:
				if err != nil {
					b.Fatalf("assay %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
				}
				return out.String(), most, time.Since(began)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	target := startServer(b)
	draft := filepath.Join(dir, "draft")
	writeDraft(b, draft)
	model := filepath.Join(dir, "model.bin")
	if err := os.WriteFile(model, []byte("a model"), 0o644); err != nil {
		b.Fatal(err)
	}
	run("push", "-q", "many/model:1.0.0", model)
	run("suite", "push", draft, "many/suite:1", "--model", "many/model:1.0.0", "--name", "m", "--version", "1")
	run("env", "register", "many", "--url", target, "--model", "m", "--version", "1")
	out, replayed, took := run("replay", "many/model:1.0.0", "--suite", "many/suite:1", "--env", "many", "--concurrency", "8", "-q", "-o", "json")
	var answer struct {
		Replay string        `json:"replay"`
		Report attest.Report `json:"report"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Report.Verdict != attest.Certified || answer.Report.Cases.Compared != manyCases {
		b.Fatalf("%v %s %v", err, answer.Report.Verdict, answer.Report.Reasons)
	}
	_, judged, time := run("judge", answer.Replay)
	for b.Loop() { // it is not made again
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(replayed)/1024, "replay-MiB(limit-300)")
	b.ReportMetric(took.Seconds(), "replay-s")
	b.ReportMetric(float64(judged)/1024, "judge-MiB(limit-300)")
	b.ReportMetric(time.Seconds(), "judge-s(limit-10)")
	if replayed > memoryLimit || judged > memoryLimit || time > judgeLimit {
		b.Errorf("replaying %d cases had %d MiB of anonymous memory, judging them %d MiB; at most %d are allowed. Judging took %v, at most %v is allowed", manyCases, replayed>>10, judged>>10, memoryLimit>>10, time, judgeLimit)
	}
}

// writeDraft writes a draft of a suite whose golden outputs are what the server
// of this benchmark answers.
func writeDraft(b *testing.B, dir string) {
	d := conformance.Draft{Version: 1, Name: "many", DataClassification: "synthetic", Criteria: attest.Criteria{
		Version: 2, Noise: &attest.NoiseCriteria{Ratio: 4},
		Outputs: []attest.OutputCriteria{{Output: "probabilities", Absolute: 1e-5, NoiseFactor: 8, Decision: attest.Decision{Kind: attest.DecideThreshold, Labels: []string{"no", "yes"}, Index: 1, Threshold: 0.5}}},
		Limits:  []attest.Limit{{Measure: attest.MeasureBias, Output: "probabilities", Margin: 0.001}},
		Plan:    attest.BinomialPlan{Margin: 0.001, Alpha: 0.05, Beta: 0.2, N: manyCases},
	}}
	if err := conformance.CreateDraft(dir, d); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var lines bytes.Buffer
	for i := range manyCases {
		var in []string
		first := float32(0)
		for k := range 8 {
			x := float32(rng.NormFloat64())
			if k == 0 {
				first = x
			}
			in = append(in, strconv.FormatFloat(float64(x), 'g', -1, 32))
		}
		p := min(1, max(0, 0.5+first/8))
		fmt.Fprintf(&lines, `{"id":"case-%06d","inputs":{"features":{"datatype":"FP32","shape":[1,8],"data":[%s]}},"outputs":{"probabilities":{"datatype":"FP32","shape":[1,2],"data":[%v,%v]}},"slice":{"segment":"%d"}}`+"\n", i, strings.Join(in, ","), 1-p, p, i%4)
	}
	if err := os.WriteFile(filepath.Join(dir, "cases.jsonl"), lines.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
}
