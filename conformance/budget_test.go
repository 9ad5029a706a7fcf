package conformance

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/verify/attest"
)

func TestRetryAfter(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		{"0", "", 0, true},
		{"7", "", 7 * time.Second, true},
		{" 7 ", "", 7 * time.Second, true},
		{"Sun, 01 Mar 2026 12:00:30 GMT", "", 30 * time.Second, true},
		// The server's clock is an hour ahead: the wait is what it means.
		{"Sun, 01 Mar 2026 13:00:30 GMT", "Sun, 01 Mar 2026 13:00:00 GMT", 30 * time.Second, true},
		{"Sun, 01 Mar 2026 11:00:00 GMT", "", 0, true}, // past: now
		{"", "", 0, false},
		{"-1", "", 0, false},
		{"1.5", "", 0, false},
		{"soon", "", 0, false},
	} {
		got, ok := retryAfter(map[string]string{"Retry-After": c.value, "Date": c.date}, at)
		if got != c.want || ok != c.ok {
			t.Errorf("%q at %q: %v, %v", c.value, c.date, got, ok)
		}
	}
	for _, forever := range []string{"99999999999", "99999999999999999999999999"} {
		if got, ok := retryAfter(map[string]string{"Retry-After": forever}, at); !ok || got < 100*365*24*time.Hour {
			t.Errorf("%s: %v, %v", forever, got, ok)
		}
	}
}

// limited puts something between runner and environment that refuses a question
// now and then as a rate limiter does: it wants to be left alone, and says for how
// long. It counts who does not heed it.
type limited struct {
	*httptest.Server
	refuse func(n int) string // Retry-After of the answer to question n, from 1; "" is to pass it on
	asked  int
	until  time.Time
	early  int // questions before it
}

func limit429(t *testing.T, b *bench, status int, refuse func(n int) string) *limited {
	l := &limited{refuse: refuse}
	behind := b.server
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			behind.ServeHTTP(w, r)
			return
		}
		l.asked++ // one at a time
		if time.Now().Before(l.until) {
			l.early++
		}
		if after := refuse(l.asked); after != "" {
			if after == "date" {
				at := time.Now().Add(2 * time.Second).Truncate(time.Second)
				l.until, after = at, at.UTC().Format(http.TimeFormat)
				w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
			} else {
				l.until = time.Now().Add(time.Second)
			}
			w.Header().Set("Retry-After", after)
			http.Error(w, `{"error":"slow down"}`, status)
			return
		}
		behind.ServeHTTP(w, r)
	}))
	t.Cleanup(l.Close)
	return l
}

// What an environment asks for is heeded by the further attempt and by all other
// questions; it is in the record, and the verdict is on the first attempt.
func TestRetryAfterIsHeeded(t *testing.T) {
	for what, after := range map[string]string{"seconds": "1", "date": "date"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b := second(newBench(t, scorer))
			b.retry = 1
			status := map[string]int{"seconds": 429, "date": 503}[what]
			l := limit429(t, b, status, func(n int) string {
				if n == 30 {
					return after
				}
				return ""
			})
			plan, d, env := b.plan()
			plan.Target.URL, env.Target.URL, plan.TimeoutMillis = l.URL, l.URL, 5000
			tg, err := Open(plan.Target)
			if err != nil {
				t.Fatal(err)
			}
			replay, observations, err := Replay(t.Context(), b.suite, plan, d, tg, ReplayOptions{Dir: b.dir, Clock: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			if l.early != 0 {
				t.Errorf("%d questions came before the environment wanted to be asked again", l.early)
			}
			r := judged(t, &Replayed{Suite: b.suite, Plan: plan, PlanDigest: d, Environment: env, Replay: replay, Observations: observations})
			if r.Verdict != attest.Inconclusive || r.Cases.Retried != 1 || r.Cases.Failed != 1 {
				t.Errorf("%s: %v", r.Verdict, r.Reasons)
			}
			if x := r.Traffic; x == nil || x.RateLimited != 1 || x.Again != 1 || x.HeldBack != 1 || x.MaxWait < 700 || x.MaxWait > 2500 || x.Attempts != 71+68+1 {
				t.Errorf("%+v", x)
			}
			for _, o := range observations {
				if o.Attempt == 2 && (o.WaitedMillis < 700 || o.Status != 200) {
					t.Errorf("%+v", o)
				}
				if o.Status == status && (o.Header["Retry-After"] == "" || o.Header["Date"] == "") {
					t.Errorf("the record does not have what the environment asked for: %v", o.Header)
				}
			}
		})
	}
}

// An environment that wants to be left alone for longer than the plan waits is
// left alone; the replay goes on where it was.
func TestRetryAfterBeyondThePlan(t *testing.T) {
	b := second(newBench(t, scorer))
	long := true
	l := limit429(t, b, 429, func(n int) string {
		if n == 30 && long {
			return "3600"
		}
		return ""
	})
	plan, d, _ := b.plan()
	plan.Target.URL = l.URL
	tg, err := Open(plan.Target)
	if err != nil {
		t.Fatal(err)
	}
	opt := ReplayOptions{Dir: b.dir, Clock: time.Now}
	var stopped *Stopped
	if _, _, err = Replay(t.Context(), b.suite, plan, d, tg, opt); !errors.As(err, &stopped) || time.Until(stopped.Until) < 59*time.Minute || stopped.Requests != 28 || stopped.Questions != 71+68 {
		t.Fatalf("%v %+v", err, stopped)
	}
	// At once again: it is still too early, and nobody is asked.
	before := l.asked
	if _, _, err = Replay(t.Context(), b.suite, plan, d, tg, opt); !errors.As(err, &stopped) || l.asked != before {
		t.Fatalf("%v, %d questions", err, l.asked-before)
	}
}

// A budget is kept to the request, at any concurrency and with noise traffic; a
// new plan with a larger one goes on where it was, and the verdict is as if
// nothing had been.
func TestBudgetOfRequests(t *testing.T) {
	b := second(newBench(t, rounding), close...)
	plan, d, env := b.plan()
	plan.MaxRequests, plan.Concurrency = 50, 4
	opt := ReplayOptions{Dir: b.dir, Clock: time.Now}
	var stopped *Stopped
	if _, _, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), opt); !errors.As(err, &stopped) || stopped.Requests != 50 || stopped.Answered != 50 || !stopped.Until.IsZero() {
		t.Fatalf("%v", err)
	}
	if asked := b.server.Requests() - 2; asked != 50 {
		t.Errorf("%d questions", asked)
	}
	if !strings.Contains(stopped.Error(), "its plan allows 50 requests; 50 requests were used, and 50 of 139 questions have their answer") {
		t.Error(stopped)
	}
	model := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("model"), Size: 1}
	digestOf := func(p attest.Plan) digest.Digest {
		a, err := PlanArtifact(p, model)
		if err != nil {
			t.Fatal(err)
		}
		return a.Descriptor.Digest
	}
	next, err := Continue(plan, digestOf(plan), 200, 0, start.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	replay, observations, err := Replay(t.Context(), b.suite, next, digestOf(next), connect(t, b.server), opt)
	if err != nil {
		t.Fatal(err)
	}
	if asked := b.server.Requests() - 4; asked != 71+68 {
		t.Errorf("%d questions for %d", asked, 71+68)
	}
	record := &Replayed{Suite: b.suite, Plan: next, PlanDigest: digestOf(next), Earlier: []attest.Plan{plan}, Environment: env, Replay: replay, Observations: observations}
	r := judged(t, record)
	if r.Verdict != attest.Certified || r.Traffic.Requests != 139 || r.Traffic.MaxRequests != 200 || r.Traffic.Budgets != 2 {
		t.Errorf("%s: %v %+v", r.Verdict, r.Reasons, r.Traffic)
	}
	// A replay that began before its plan, without the plan that it began under;
	// and under a plan that was something else.
	for what, change := range map[string]func(r *Replayed){
		"the earlier plan is missing":        func(r *Replayed) { r.Earlier = nil },
		"the earlier plan had other retries": func(r *Replayed) { r.Earlier[0].Retries = 3 },
		"the earlier plan came later":        func(r *Replayed) { r.Earlier[0].PlannedAt = start.Add(time.Hour) },
		"it began before the earlier plan":   func(r *Replayed) { r.Replay.StartedAt = start.Add(-time.Hour) },
		"it used more than it may":           func(r *Replayed) { r.Plan.MaxRequests = 138 },
	} {
		changed := *record
		changed.Earlier = []attest.Plan{plan}
		change(&changed)
		if r := judged(t, &changed); r.Verdict != attest.Inconclusive {
			t.Errorf("%s: %s %v", what, r.Verdict, r.Reasons)
		}
	}
	if _, err := Continue(plan, digestOf(plan), 200, 0, start.Add(-time.Hour)); err == nil {
		t.Error("a plan continues one that is made later")
	}
}

func TestBudgetUnderNoiseTraffic(t *testing.T) {
	b := second(newBench(t, scorer))
	plan, d, _ := b.plan()
	plan.MaxRequests, plan.NoiseTraffic = 60, 3
	var stopped *Stopped
	if _, _, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now}); !errors.As(err, &stopped) || stopped.Requests != 60 || stopped.Answered >= 60 {
		t.Fatalf("%v", err)
	}
	if asked := b.server.Requests() - 2; asked != 60 {
		t.Errorf("%d questions", asked)
	}
	// The noise of the first run counts in the second, which may send one more.
	plan.MaxRequests = 61
	if _, _, err := Replay(t.Context(), b.suite, plan, d, connect(t, b.server), ReplayOptions{Dir: b.dir, Clock: time.Now}); !errors.As(err, &stopped) || stopped.Requests != 61 {
		t.Fatalf("%v", err)
	}
	if asked := b.server.Requests() - 4; asked != 61 {
		t.Errorf("%d questions", asked)
	}
}

// Interrupted while it waits, a replay stops at once.
func TestInterruptedWhileHeldBack(t *testing.T) {
	b := second(newBench(t, scorer))
	l := limit429(t, b, 429, func(n int) string {
		if n >= 30 {
			return "50"
		}
		return ""
	})
	plan, d, _ := b.plan()
	plan.Target.URL = l.URL
	tg, err := Open(plan.Target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, _, err := Replay(ctx, b.suite, plan, d, tg, ReplayOptions{Dir: b.dir, Clock: time.Now}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if l.asked != 30 {
		t.Errorf("%d questions", l.asked)
	}
}

// Tokens are what the environment counts; one that does not say is not metered by
// guessing.
func TestBudgetOfTokens(t *testing.T) {
	b := newTextBench(t, textCandidates(""), textCriteria(attest.TextCriteria{Decision: attest.DecideText}))
	suite, criteria, err := b.suite.digests()
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(PlanOptions{Model: digest.FromString("model"), Suite: b.suite, SuiteDigest: suite, CriteriaDigest: criteria,
		Environment: attest.Environment{Name: "prod", Target: b.target, RecordedAt: start}, EnvironmentDigest: digest.FromString("environment"), MaxTokens: 200, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	tg, err := Open(b.target)
	if err != nil {
		t.Fatal(err)
	}
	opt := ReplayOptions{Dir: t.TempDir(), Clock: time.Now}
	var stopped *Stopped
	if _, _, err := Replay(t.Context(), b.suite, plan, digest.FromString("plan"), tg, opt); !errors.As(err, &stopped) || stopped.Tokens < 200 || stopped.Tokens > 220 {
		t.Fatalf("%v", err)
	}
	used, before := stopped.Tokens, b.server.Requests()
	// What was used is counted again from the record.
	if _, _, err := Replay(t.Context(), b.suite, plan, digest.FromString("plan"), tg, opt); !errors.As(err, &stopped) || stopped.Tokens != used || b.server.Requests() != before {
		t.Errorf("%v, %d were used before", err, used)
	}
	v := newBench(t, scorer) // which has no tokens to count
	tensors, d, _ := v.plan()
	tensors.MaxTokens = 200
	if _, _, err := Replay(t.Context(), v.suite, tensors, d, connect(t, v.server), ReplayOptions{Dir: v.dir, Clock: time.Now}); !errors.As(err, &stopped) || !stopped.Unmetered || stopped.Answered != 1 {
		t.Errorf("%v", err)
	}
}
