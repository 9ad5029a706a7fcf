// Package bench measures what a replay costs beside a bare load generator that
// asks the same questions of the same server.
package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	vegeta "github.com/tsenart/vegeta/v12/lib"
	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/stats"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/verify/attest"
)

// serviceTime is how long the server takes for an answer.
const serviceTime = time.Millisecond

// limit is what a replay may cost: this many times a bare load generator.
const limit = 1.05

// TestMain is also the server: another process, so that its work is not in the
// figures.
func TestMain(m *testing.M) {
	if os.Getenv("ASSAY_BENCH_SERVER") == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	panic(http.Serve(l, http.HandlerFunc(serve)))
}

func serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/v2":
		fmt.Fprint(w, `{"name":"bench","version":"1","extensions":[]}`)
	case "/v2/models/m/versions/1/ready":
	case "/v2/models/m/versions/1":
		fmt.Fprint(w, `{"name":"m","versions":["1"],"platform":"bench","inputs":[{"name":"features","datatype":"FP32","shape":[-1,8]}],"outputs":[{"name":"probabilities","datatype":"FP32","shape":[-1,2]}]}`)
	default:
		start := time.Now()
		var q struct {
			ID     string `json:"id"`
			Inputs []struct {
				Data []float32 `json:"data"`
			} `json:"inputs"`
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || len(q.Inputs) != 1 {
			http.Error(w, `{"error":"one input is expected"}`, http.StatusBadRequest)
			return
		}
		var out []string
		in := q.Inputs[0].Data
		for ; len(in) >= 8; in = in[8:] {
			p := min(1, max(0, 0.5+in[0]/8))
			out = append(out, fmt.Sprintf("%v,%v", 1-p, p))
		}
		if len(out) == 1 {
			time.Sleep(serviceTime - time.Since(start))
		}
		fmt.Fprintf(w, `{"model_name":"m","model_version":"1","id":%q,"outputs":[{"name":"probabilities","datatype":"FP32","shape":[%d,2],"data":[%s]}]}`, q.ID, len(out), strings.Join(out, ","))
	}
}

func startServer(b *testing.B) string {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ASSAY_BENCH_SERVER=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		b.Fatal(err)
	}
	return "http://" + strings.TrimSpace(string(line[:n]))
}

// suite records one that excludes a flip rate of 0.1 %.
func suite(b *testing.B, t attest.Target) *conformance.Suite {
	rng := rand.New(rand.NewPCG(1, 2))
	n, err := stats.SmallestN(0, 0.001, 0.05)
	if err != nil {
		b.Fatal(err)
	}
	var candidates []conformance.Candidate
	for i := range n {
		var data []json.Number
		for range 8 {
			data = append(data, json.Number(fmt.Sprint(float32(rng.NormFloat64()))))
		}
		candidates = append(candidates, conformance.Candidate{ID: fmt.Sprintf("case-%05d", i), Inputs: map[string]conformance.CandidateTensor{"features": {Datatype: "FP32", Shape: []int64{1, 8}, Data: data}}})
	}
	tg, err := conformance.Open(t)
	if err != nil {
		b.Fatal(err)
	}
	s, err := conformance.Record(b.Context(), tg, conformance.RecordOptions{
		Name: "bench", Model: attest.ResourceOf("", digest.FromString("model")), Target: t, Candidates: candidates, Claim: n, DataClassification: "synthetic", Clock: time.Now,
		Criteria: attest.Criteria{Version: 1, Outputs: []attest.OutputCriteria{{Output: "probabilities", Absolute: 1e-5, Decision: attest.Decision{Kind: attest.DecideThreshold, Labels: []string{"no", "yes"}, Index: 1, Threshold: 0.5}}},
			Plan: attest.BinomialPlan{Margin: 0.001, Alpha: 0.05, Beta: 0.2, N: n}},
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// A cost is of one request.
type cost struct{ wall, cpu time.Duration }

func measure(b *testing.B, requests int, work func()) cost {
	usage := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	cpu, start := usage(), time.Now()
	work()
	wall := time.Since(start)
	return cost{wall / time.Duration(requests), (usage() - cpu) / time.Duration(requests)}
}

// BenchmarkReplay replays a suite and fires the same requests with vegeta, in
// turn, the first one alternating. It fails if the median of the ratios of a
// pair is over the limit, one question at a time. Eight at a time have no
// limit: on two cores, which the server shares, they measure the processor and
// no longer the service time; the figures say by how much.
func BenchmarkReplay(b *testing.B) {
	t := attest.Target{Protocol: oip.Name, URL: startServer(b), Model: "m", Version: "1"}
	s := suite(b, t)
	artifact, err := s.Artifact()
	if err != nil {
		b.Fatal(err)
	}
	criteria, err := attest.Marshal(s.Criteria)
	if err != nil {
		b.Fatal(err)
	}
	var bodies [][]byte
	for _, c := range s.Cases {
		raw, err := oip.Protocol{}.Encode(target.Question{ID: c.ID, Model: "m", Version: "1", Inputs: []compare.Tensor{s.Tensors[c.InputTensor("features")]}, Outputs: []string{"probabilities"}})
		if err != nil {
			b.Fatal(err)
		}
		if c.Request != string(digest.FromBytes(raw)) {
			b.Fatalf("case %s would be asked with other bytes", c.ID)
		}
		bodies = append(bodies, raw)
	}
	for _, concurrency := range []int{1, 8} {
		b.Run(fmt.Sprintf("concurrency=%d", concurrency), func(b *testing.B) {
			tg, err := conformance.Open(t)
			if err != nil {
				b.Fatal(err)
			}
			plan, err := conformance.NewPlan(conformance.PlanOptions{
				Model: digest.FromString("model"), Suite: s, SuiteDigest: artifact.Descriptor.Digest, CriteriaDigest: digest.FromBytes(criteria),
				Environment: attest.Environment{Name: "bench", Target: t, RecordedAt: time.Now()}, EnvironmentDigest: digest.FromString("environment"), Concurrency: concurrency, Now: time.Now(),
			})
			if err != nil {
				b.Fatal(err)
			}
			replay := func() {
				_, observations, err := conformance.Replay(b.Context(), s, plan, digest.FromString("plan"), tg, conformance.ReplayOptions{Dir: b.TempDir(), Clock: time.Now})
				if err != nil || len(observations) != len(bodies) {
					b.Fatalf("%d observations, %v", len(observations), err)
				}
				for _, o := range observations {
					if o.Error != nil || o.Status != 200 {
						b.Fatalf("%+v", o)
					}
				}
			}
			fire := func() {
				var next atomic.Int64
				header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
				attacker := vegeta.NewAttacker(vegeta.Workers(uint64(concurrency)), vegeta.MaxWorkers(uint64(concurrency)), vegeta.Connections(concurrency), vegeta.HTTP2(false))
				results := attacker.Attack(func(v *vegeta.Target) error {
					i := int(next.Add(1)) - 1
					if i >= len(bodies) {
						return vegeta.ErrNoTargets
					}
					v.Method, v.URL, v.Body, v.Header = "POST", t.URL+"/v2/models/m/versions/1/infer", bodies[i], header
					return nil
				}, vegeta.Rate{}, 0, "bench")
				n := 0
				for r := range results {
					if r.Error == vegeta.ErrNoTargets.Error() {
						continue // the end, once for each worker
					}
					if r.Error != "" || r.Code != 200 || !bytes.Contains(r.Body, []byte("probabilities")) {
						b.Fatalf("%+v", r)
					}
					n++
				}
				if n != len(bodies) {
					b.Fatalf("%d of %d requests", n, len(bodies))
				}
			}
			replay()
			fire() // both have been there
			b.ResetTimer()
			var ratios, cpus []float64
			var ours, theirs cost
			for n := 0; b.Loop(); n++ {
				var r, v cost
				if n%2 == 0 {
					r = measure(b, len(bodies), replay)
					v = measure(b, len(bodies), fire)
				} else {
					v = measure(b, len(bodies), fire)
					r = measure(b, len(bodies), replay)
				}
				ratios, cpus = append(ratios, float64(r.wall)/float64(v.wall)), append(cpus, float64(r.cpu)/float64(v.cpu))
				ours, theirs = cost{ours.wall + r.wall, ours.cpu + r.cpu}, cost{theirs.wall + v.wall, theirs.cpu + v.cpu}
			}
			pairs := time.Duration(len(ratios))
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ratios), "×vegeta")
			if concurrency == 1 {
				b.ReportMetric(limit, "limit")
			}
			b.ReportMetric(float64((ours.wall / pairs).Microseconds()), "µs/request")
			b.ReportMetric(float64((theirs.wall / pairs).Microseconds()), "vegeta-µs/request")
			b.ReportMetric(float64((ours.cpu / pairs).Microseconds()), "cpu-µs/request")
			b.ReportMetric(float64((theirs.cpu / pairs).Microseconds()), "vegeta-cpu-µs/request")
			b.ReportMetric(float64(pairs), "pairs")
			if m := median(ratios); m > limit && len(ratios) >= 5 && concurrency == 1 {
				b.Errorf("a replay costs %.3f of a bare load generator, at most %.2f is allowed (%d pairs, %.3f to %.3f); %v and %v a request, %v and %v of CPU",
					m, limit, len(ratios), slices.Min(ratios), slices.Max(ratios), ours.wall/pairs, theirs.wall/pairs, ours.cpu/pairs, theirs.cpu/pairs)
			}
		})
	}
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
