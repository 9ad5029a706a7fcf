package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/verify/attest"
)

// replayChild is the child of TestKilledWhileReplaying.
func replayChild(dir string) {
	var r Replayed
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		panic(err)
	}
	tg, err := Open(r.Plan.Target)
	if err != nil {
		panic(err)
	}
	if _, _, err := Replay(context.Background(), r.Suite, r.Plan, r.PlanDigest, tg, ReplayOptions{Dir: dir, Clock: time.Now}); err != nil {
		panic(err)
	}
}

// A counting proxy between runner and environment sees every attempt that is in
// the record once, and none that is not, over 20 kills of the runner.
func TestKilledWhileReplaying(t *testing.T) {
	b := second(newBench(t, rounding), close...)
	behind, err := url.Parse(b.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(behind)
	var mu sync.Mutex
	seen := map[string]int{}
	total := 0
	killAt, kill := 0, func() {}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return // killed while it sent
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			mu.Lock()
			seen[string(digest.FromBytes(body))]++
			total++
			if total == killAt {
				kill()
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		forward.ServeHTTP(w, r)
	}))
	forward.ErrorLog = nil
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	defer proxy.Close()
	plan, d, env := b.plan()
	plan.Target.URL, plan.Concurrency, plan.TimeoutMillis = proxy.URL, 2, 5000
	env.Target = plan.Target
	in := mustJSON(&Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env})
	kills := 0
	for run := 0; ; run++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ASSAY_TEST_REPLAY="+b.dir)
		cmd.Stdin = bytes.NewReader(in)
		mu.Lock()
		killAt = total + 3 + run%5
		if run >= 20 {
			killAt = 0
		}
		kill = func() { cmd.Process.Kill() }
		if err := cmd.Start(); err != nil {
			mu.Unlock()
			t.Fatal(err)
		}
		mu.Unlock()
		err := cmd.Wait()
		if err == nil {
			break
		}
		if kills++; run >= 20 {
			t.Fatal(err)
		}
	}
	if kills != 20 {
		t.Errorf("%d kills", kills)
	}
	replay, observations, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	// The pre-flight asks two cases, once in each run.
	asked := map[string]bool{b.suite.Cases[0].Request: true, b.suite.Cases[1].Request: true}
	recorded, interrupted := map[string]int{}, map[string]int{}
	attempts := map[string][]int{}
	for _, o := range observations {
		recorded[o.Request]++
		if o.Error != nil && o.Error.Class == attest.Interrupted {
			interrupted[o.Request]++
		} else if o.Error != nil {
			t.Errorf("%s: %+v", o.Case, o.Error)
		}
		attempts[observedKey(o)] = append(attempts[observedKey(o)], o.Attempt)
	}
	for request, n := range recorded {
		if !asked[request] && (seen[request] > n || seen[request] < n-interrupted[request]) {
			t.Errorf("%s was seen %d times; the record has %d attempts, %d of them interrupted", request, seen[request], n, interrupted[request])
		}
	}
	for request := range seen {
		if recorded[request] == 0 {
			t.Errorf("%s was seen and is not in the record", request)
		}
	}
	for key, list := range attempts {
		for i, n := range list {
			if n != i+1 {
				t.Errorf("%s has attempts %v", key, list)
			}
		}
	}
	if len(attempts) < 71+68 || replay.Interrupted == 0 {
		t.Errorf("%d questions in the record, %d attempts interrupted", len(attempts), replay.Interrupted)
	}
	// Twenty stops in 71 cases are too many to say that these are first answers.
	r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations})
	t.Logf("%d attempts interrupted, %d cases: %s %v", replay.Interrupted, r.Cases.Interrupted, r.Verdict, r.Reasons)
	if r.Verdict != attest.Inconclusive || r.Cases.Interrupted < 4 {
		t.Errorf("%s: %v", r.Verdict, r.Reasons)
	}
}

// One stop is none of the environment's doing; and it is in the report.
func TestStoppedOnce(t *testing.T) {
	b := second(newBench(t, scorer))
	r := b.replay()
	first := r.Observations[slices.IndexFunc(r.Observations, func(o attest.Observation) bool { return o.Case == b.suite.Cases[5].ID && o.Probe == "" })]
	stopped := first
	stopped.Status, stopped.Response = 0, nil
	stopped.Error = &attest.ObservationError{Class: attest.Interrupted, Message: "stopped"}
	for i := range r.Observations {
		if o := &r.Observations[i]; o.Case == first.Case && o.Probe == "" {
			o.Attempt = 2
		}
	}
	r.Observations = append(r.Observations, stopped)
	r.Replay.Observations++
	// The probes of that case are compared with its answer.
	if report := judged(t, r); report.Verdict != attest.Certified || report.Cases.Interrupted != 1 {
		t.Errorf("%s: %v, %+v", report.Verdict, report.Reasons, report.Cases)
	}
	b.suite.Criteria.Version, b.suite.Criteria.Noise = 1, nil
	r.Plan, r.PlanDigest, _ = b.plan()
	if report := judged(t, r); report.Verdict == attest.Certified {
		t.Error("criteria of version 1 judge the first attempt, whatever it was")
	}
}

// An open-loop schedule asks when it said, though the environment stands still;
// and delays count from then.
func TestOpenLoop(t *testing.T) {
	b := second(newBench(t, scorer))
	b.server.SetMisbehave(func(n int) string {
		if n == 20 {
			time.Sleep(150 * time.Millisecond) // the stall
		}
		return ""
	})
	plan, d, env := b.plan()
	plan.RatePerSecond, plan.Concurrency, plan.TimeoutMillis = 500, 1, 5000
	replay, observations, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	late, waits := 0, 0
	var last time.Time
	for _, o := range observations {
		if o.Probe != "" {
			continue
		}
		if o.DueAt == nil {
			t.Fatalf("%s has no time at which it was due", o.Case)
		}
		if !last.IsZero() && o.DueAt.Sub(last) > 2500*time.Microsecond {
			t.Errorf("%s was due %v after the one before, at 500 a second", o.Case, o.DueAt.Sub(last))
		}
		last = *o.DueAt
		if o.ReceivedAt.Sub(*o.DueAt) > 50*time.Millisecond {
			late++
		}
		if o.ReceivedAt.Sub(o.SentAt) > 50*time.Millisecond {
			waits++
		}
	}
	if late < 20 || waits > 5 {
		t.Errorf("%d answers are late by when they were due, %d by when they were sent: one stall delays many", late, waits)
	}
	r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations})
	if r.Verdict != attest.Certified || !r.Latency.Schedule || r.Latency.P90 < 50_000 {
		t.Errorf("%s %v: %+v", r.Verdict, r.Reasons, r.Latency)
	}
}

// Under noise traffic: the noise is counted, and is in no rate.
func TestNoiseTraffic(t *testing.T) {
	b := second(newBench(t, scorer))
	plan, d, env := b.plan()
	plan.NoiseTraffic = 3
	replay, observations, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations})
	if r.Verdict != attest.Certified || replay.NoiseAnswers == 0 || len(observations) != 71+68 || b.server.Requests() < replay.NoiseAnswers+71+68 {
		t.Errorf("%s %v: %+v", r.Verdict, r.Reasons, replay)
	}
	// An environment that is right when it is idle, and not when it is busy.
	b = second(newBench(t, scorer))
	var busy sync.Mutex
	inFlight := 0
	b.server.SetModel(func(in []float32) []float32 {
		busy.Lock()
		inFlight++
		n := inFlight
		busy.Unlock()
		time.Sleep(200 * time.Microsecond)
		busy.Lock()
		inFlight--
		busy.Unlock()
		if n > 1 {
			p := scorer(in)
			return []float32{p[1], p[0]}
		}
		return scorer(in)
	})
	if r := judged(t, b.replay()); r.Verdict != attest.Certified {
		t.Errorf("idle: %s: %v", r.Verdict, r.Reasons)
	}
	plan, d, env = b.plan()
	plan.NoiseTraffic = 4
	replay, observations, err = Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: t.TempDir(), Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations}); r.Verdict != attest.Rejected {
		t.Errorf("busy: %s: %v", r.Verdict, r.Reasons)
	}
}
