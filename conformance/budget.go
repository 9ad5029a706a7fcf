package conformance

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// A Stopped says why a replay stopped before its end though nothing failed: its
// budget is spent, or the environment wants to be left alone for longer than the
// plan waits. What was observed is kept, and the replay can go on.
type Stopped struct {
	Reason string

	// Requests and Tokens were used, under all budgets together; Answered of
	// Questions (cases and probes) have their answer.
	Requests            int
	Tokens              int64
	Answered, Questions int

	// Until is when the environment may be asked again; zero if it is the budget
	// that is spent. Unmetered: there is a budget of tokens, and the environment
	// does not say how many it used.
	Until     time.Time
	Unmetered bool
}

func (e *Stopped) Error() string {
	tokens := ""
	if e.Tokens > 0 {
		tokens = fmt.Sprintf(" and %d tokens", e.Tokens)
	}
	return fmt.Sprintf("the replay stopped: %s; %d requests%s were used, and %d of %d questions have their answer", e.Reason, e.Requests, tokens, e.Answered, e.Questions)
}

// Continue makes the plan that goes on, with another budget, where a replay
// under an earlier one stopped.
func Continue(earlier attest.Plan, d digest.Digest, maxRequests int, maxTokens int64, now time.Time) (attest.Plan, error) {
	p := earlier
	resource := attest.ResourceOf(attest.PlanType, d)
	p.MaxRequests, p.MaxTokens, p.Continues = maxRequests, maxTokens, &resource
	p.PlannedAt, p.Deadline = now.UTC(), now.UTC().Add(earlier.Deadline.Sub(earlier.PlannedAt))
	return p, errors.Join(p.Validate(), p.Follows(earlier))
}

// maxContinued is how often a replay may be given another budget.
const maxContinued = 100

// begun returns when the first plan of a replay was made, and why the plans do
// not hang together.
func (r *Replayed) begun() (time.Time, error) {
	p := r.Plan
	for _, earlier := range r.Earlier {
		if err := p.Follows(earlier); err != nil {
			return r.Plan.PlannedAt, err
		}
		p = earlier
	}
	if p.Continues != nil {
		return r.Plan.PlannedAt, errors.New("plan: the one that it continues is missing")
	}
	return p.PlannedAt, nil
}

// Questions is how many questions a plan has: its cases and its noise probes.
func Questions(s *Suite, plan attest.Plan) (int, error) {
	p, err := protocolOf(plan.Target)
	if err != nil {
		return 0, err
	}
	probes, err := s.probes(plan, p)
	return len(s.Cases) + len(probes), err
}

// A budget is what a replay has used of what it may use. Its methods may be
// called concurrently.
type budget struct {
	plan attest.Plan

	mu       sync.Mutex
	requests int // guarded by mu, as all below
	tokens   int64
	until    time.Time // nothing is to be asked before
	stopped  *Stopped
}

// take takes one request out of the budget, once the environment may be asked.
// waited is how long that took. ok is false if nothing may be sent any more.
func (b *budget) take(ctx context.Context) (waited time.Duration, ok bool) {
	began := time.Now()
	for {
		b.mu.Lock()
		wait := time.Until(b.until)
		if b.stopped != nil || ctx.Err() != nil {
			b.mu.Unlock()
			return 0, false
		}
		if wait <= 0 {
			defer b.mu.Unlock()
			if b.spent() {
				return 0, false
			}
			b.requests++
			return waited, true
		}
		b.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		waited = time.Since(began)
	}
}

// spent reports whether there is nothing left, and if so stops. The caller holds
// mu.
func (b *budget) spent() bool {
	switch {
	case b.plan.MaxRequests > 0 && b.requests >= b.plan.MaxRequests:
		b.stopped = &Stopped{Reason: fmt.Sprintf("its plan allows %d requests", b.plan.MaxRequests)}
	case b.plan.MaxTokens > 0 && b.tokens >= b.plan.MaxTokens:
		b.stopped = &Stopped{Reason: fmt.Sprintf("its plan allows %d tokens", b.plan.MaxTokens)}
	}
	return b.stopped != nil
}

// heed takes up what an answer says of the next question: when it may be asked.
func (b *budget) heed(status int, header map[string]string, received time.Time) {
	if b.plan.MaxWaitMillis == 0 || !rateLimited(status) {
		return
	}
	wait, ok := retryAfter(header, received)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	until := received.Add(wait)
	if !until.After(b.until) {
		return
	}
	b.until = until
	most := time.Duration(b.plan.MaxWaitMillis) * time.Millisecond
	if left := time.Until(until); left > most && b.stopped == nil {
		b.stopped = &Stopped{Until: until, Reason: fmt.Sprintf("the environment asks to be left alone until %s, and the plan waits for %v", until.UTC().Format(time.RFC3339), most)}
	}
}

// spend counts what an answer cost.
func (b *budget) spend(tokens int64, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens += tokens
	if !known && b.stopped == nil {
		b.stopped = &Stopped{Unmetered: true, Reason: "the plan has a budget of tokens, and the environment does not say how many it used"}
	}
}

// left reports whether anything may be sent.
func (b *budget) left() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.spent()
}

// stop returns why nothing may be sent any more, or nil.
func (b *budget) stop() *Stopped {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stopped
}

func rateLimited(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// retryAfter is how long an answer asks to be left alone: "Retry-After =
// HTTP-date / delay-seconds" (RFC 9110, section 10.2.3). A date is by the
// server's clock, so it counts from the answer's own. What is neither says
// nothing. Nothing is added at random: the environment said when.
func retryAfter(header map[string]string, received time.Time) (time.Duration, bool) {
	v := strings.TrimSpace(header["Retry-After"])
	if v == "" {
		return 0, false
	}
	if strings.Trim(v, "0123456789") == "" {
		seconds, err := strconv.ParseInt(v, 10, 64)
		if err != nil || seconds > math.MaxInt64/int64(2*time.Second) {
			seconds = math.MaxInt64 / int64(2*time.Second) // for ever, as far as a replay goes
		}
		return time.Duration(seconds) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	from := received
	if date, err := http.ParseTime(header["Date"]); err == nil {
		from = date
	}
	return max(0, at.Sub(from)), true
}

// usageOf is how many tokens an answer cost. known is false if it answers the
// question and does not say. An answer that is none costs what nobody knows.
func usageOf(p target.Protocol, q target.Question, o *attest.Observation) (tokens int64, known bool) {
	if o.Error != nil {
		return 0, true
	}
	a, err := p.Decode(q, responseOf(o))
	switch {
	case err != nil:
		return 0, true
	case a.Usage == nil:
		return 0, false
	}
	return int64(max(a.Usage.Total, a.Usage.Prompt+a.Usage.Completion)), true
}

// traffic fills what a report says of how the replay was made, and holds it
// against the plan's budget.
func (j *judge) traffic() error {
	plan := j.r.Plan
	if plan.MaxWaitMillis == 0 && plan.MaxRequests == 0 && plan.MaxTokens == 0 {
		return nil // as before there were any
	}
	t := &attest.Traffic{MaxRequests: plan.MaxRequests, MaxTokens: plan.MaxTokens, Budgets: 1 + len(j.r.Earlier)}
	questions := map[string]target.Question{}
	if plan.MaxTokens > 0 {
		probes, err := j.r.Suite.probes(plan, j.protocol)
		if err != nil {
			return err
		}
		for _, c := range j.r.Suite.Cases {
			questions[c.ID], _, _ = j.r.Suite.question(c, plan.Target)
		}
		for _, p := range probes {
			questions[probeKey(p.kind, p.cases[0].ID)] = p.question
		}
	}
	for i := range j.r.Observations {
		o := &j.r.Observations[i]
		t.Attempts++
		if o.Attempt > 1 {
			t.Again++
		}
		if rateLimited(o.Status) {
			t.RateLimited++
		}
		if o.WaitedMillis > 0 {
			t.HeldBack++
			t.MaxWait = max(t.MaxWait, o.WaitedMillis)
		}
		if q, ok := questions[observedKey(*o)]; ok {
			tokens, _ := usageOf(j.protocol, q, o)
			t.Tokens += tokens
		}
	}
	t.Requests = t.Attempts + j.r.Replay.NoiseAnswers + j.r.Replay.NoiseFailures
	if plan.MaxRequests > 0 && t.Requests > plan.MaxRequests {
		j.fallsShort("the replay made %d requests, and its plan allows %d", t.Requests, plan.MaxRequests)
	}
	j.report.Traffic = t
	return nil
}
