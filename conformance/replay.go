package conformance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// PlanOptions say how a replay is to be made.
type PlanOptions struct {
	Model             digest.Digest
	Suite             *Suite
	SuiteDigest       digest.Digest
	CriteriaDigest    digest.Digest
	Environment       attest.Environment
	EnvironmentDigest digest.Digest
	Concurrency       int                  // 0 is 1
	Timeout           time.Duration        // of one request; 0 is 30 s
	Retries           int                  // further attempts, recorded and never judged
	Threads           *attest.OtherThreads // a second endpoint on another number of threads (see [FindThreads]); nil if they are not varied
	BothWays          int                  // cases asked streamed and whole; all of them if the criteria say so
	RatePerSecond     float64              // an open-loop schedule; 0 is to ask as fast as answers come
	NoiseTraffic      int                  // other questions kept in flight
	Probes            int                  // cases asked again to measure noise; 0 is 32 for criteria of version 2
	MaxWait           time.Duration        // how long the environment may ask to be left alone; 0 is a minute, less is not at all
	MaxRequests       int                  // 0 is no limit, as for MaxTokens
	MaxTokens         int64
	Deadline          time.Duration // 0 is a day
	Now               time.Time
}

// NewPlan writes down what will be asked of whom, before anything is.
func NewPlan(opt PlanOptions) (attest.Plan, error) {
	if opt.Concurrency == 0 {
		opt.Concurrency = 1
	}
	if opt.Timeout == 0 {
		opt.Timeout = 30 * time.Second
	}
	if opt.Deadline == 0 {
		opt.Deadline = 24 * time.Hour
	}
	if opt.MaxWait == 0 {
		opt.MaxWait = time.Minute
	}
	if opt.Suite.sampled() {
		opt.Probes = 0 // to be asked again is what its cases are for
	} else if opt.Probes == 0 && opt.Suite.Criteria.Version >= 2 {
		opt.Probes = min(32, opt.Suite.Document.Claim)
	}
	if err := opt.Suite.askable(attest.Plan{Threads: opt.Threads, BothWays: opt.BothWays}); err != nil {
		return attest.Plan{}, err
	}
	if t := opt.Suite.Criteria.Text; t != nil && t.BothWays {
		opt.BothWays = len(opt.Suite.Cases)
	}
	p := attest.Plan{
		Model:           attest.ResourceOf("", opt.Model),
		Suite:           attest.ResourceOf(attest.SuiteType, opt.SuiteDigest),
		Criteria:        attest.ResourceOf(attest.CriteriaType, opt.CriteriaDigest),
		EnvironmentName: opt.Environment.Name, Environment: attest.ResourceOf(attest.EnvironmentType, opt.EnvironmentDigest),
		Target: opt.Environment.Target, Cases: len(opt.Suite.Cases), Order: opt.Suite.order(),
		Concurrency: opt.Concurrency, TimeoutMillis: int(opt.Timeout.Milliseconds()), Retries: opt.Retries, Probes: opt.Probes,
		Threads: opt.Threads, BothWays: opt.BothWays, RatePerSecond: opt.RatePerSecond, NoiseTraffic: opt.NoiseTraffic,
		MaxWaitMillis: int(max(0, opt.MaxWait).Milliseconds()), MaxRequests: opt.MaxRequests, MaxTokens: opt.MaxTokens,
		PlannedAt: opt.Now.UTC(), Deadline: opt.Now.Add(opt.Deadline).UTC(),
	}
	return p, p.Validate()
}

// ReplayOptions configure Replay.
type ReplayOptions struct {
	// Dir keeps the observations while they are made. Observations that are
	// there already, of an earlier run that was interrupted, are not made
	// again.
	Dir string

	Clock    func() time.Time
	Progress func(done int) // called after each question that is answered; so many since the last call
}

// Replay asks an environment all questions of a suite and records every
// attempt: what was sent, what came back, when, or why nothing did. It judges
// nothing. A question that gets no answer is recorded as that, and the replay
// goes on. If the budget of the plan is spent, or the environment wants to be
// left alone for longer than the plan waits, the error is a *[Stopped], and
// what was observed is in opt.Dir.
func Replay(ctx context.Context, s *Suite, plan attest.Plan, planDigest digest.Digest, tg target.Target, opt ReplayOptions) (attest.Replay, []attest.Observation, error) {
	if err := s.validate(); err != nil {
		return attest.Replay{}, nil, err
	}
	if plan.Order != s.order() || plan.Cases != len(s.Cases) {
		return attest.Replay{}, nil, errors.New("the plan is for another suite")
	}
	probes, err := s.probes(plan, tg)
	if err != nil {
		return attest.Replay{}, nil, err
	}
	other := tg
	if plan.Threads != nil {
		if other, err = Open(otherThreads(plan.Target, *plan.Threads)); err != nil {
			return attest.Replay{}, nil, fmt.Errorf("the noise endpoint: %w", err)
		}
		defer release(other)
	}
	r := &runner{s: s, plan: plan, tg: tg, other: other, asked: make(map[string]*asked, len(s.Cases)+len(probes)), budget: &budget{plan: plan}}
	replay := attest.Replay{
		Plan: attest.ResourceOf(attest.PlanType, planDigest), Model: plan.Model, Environment: plan.Environment, StartedAt: opt.Clock().UTC(),
	}
	questions := map[string]target.Question{} // of probes, by key
	for _, p := range probes {
		questions[probeKey(p.kind, p.cases[0].ID)] = p.question
	}
	// What was observed before we were stopped.
	r.journal, err = openJournal(filepath.Join(opt.Dir, fileObservations), func(o *attest.Observation) error {
		if o.SentAt.Before(replay.StartedAt) {
			replay.StartedAt = o.SentAt
		}
		r.note(o)
		r.budget.requests++
		if plan.MaxTokens == 0 {
			return nil
		}
		q, ok := questions[observedKey(*o)]
		if i, found := slices.BinarySearchFunc(s.Cases, o.Case, func(c attest.Case, id string) int { return strings.Compare(c.ID, id) }); !ok && found {
			q, _, _ = s.question(s.Cases[i], plan.Target)
		}
		tokens, _ := usageOf(tg, q, o)
		r.budget.tokens += tokens
		return nil
	}, func(o attest.Observation) bool {
		a := r.asked[observedKey(o)]
		return a != nil && a.attempts >= o.Attempt
	})
	if err != nil {
		return attest.Replay{}, nil, err
	}
	defer r.journal.close()
	noise, err := openNoise(filepath.Join(opt.Dir, fileNoise))
	if err != nil {
		return attest.Replay{}, nil, err
	}
	r.budget.requests += noise.Answers + noise.Failures
	if opt.Progress != nil {
		if n := r.answered(); n > 0 {
			opt.Progress(n)
		}
	}
	err = r.run(ctx, opt, probes, noise, &replay)
	if err := errors.Join(noise.save(), r.journal.sync(), err); err != nil {
		return attest.Replay{}, nil, err
	}
	if stopped := r.budget.stop(); stopped != nil && (r.answered() < len(s.Cases)+len(probes)) {
		stopped.Requests, stopped.Tokens, stopped.Answered, stopped.Questions = r.budget.requests, r.budget.tokens, r.answered(), len(s.Cases)+len(probes)
		return attest.Replay{}, nil, stopped
	}
	if err := ctx.Err(); err != nil {
		return attest.Replay{}, nil, fmt.Errorf("the replay was interrupted after %d observations: %w", r.budget.requests, err)
	}
	list, err := r.journal.read(s)
	if err != nil {
		return attest.Replay{}, nil, err
	}
	for _, o := range list {
		if o.Error != nil && o.Error.Class == attest.Interrupted {
			replay.Interrupted++
		}
	}
	replay.NoiseAnswers, replay.NoiseFailures = noise.Answers, noise.Failures
	replay.FinishedAt, replay.Observations = opt.Clock().UTC(), len(list)
	return replay, list, nil
}

// A runner makes a replay. The observations are in the journal alone, so that
// their number costs no memory while they are made.
type runner struct {
	s       *Suite
	plan    attest.Plan
	tg      target.Target
	other   target.Target // on another number of threads
	journal *journal
	budget  *budget

	mu    sync.Mutex
	asked map[string]*asked // guarded by mu: by observedKey
}

// asked is what became of a question so far.
type asked struct {
	attempts int  // in the record
	ended    int  // of those, the ones of which the runner saw the end
	done     bool // it is not to be asked again
}

// note takes up an attempt that is in the record.
func (r *runner) note(o *attest.Observation) {
	r.mu.Lock()
	a := r.asked[observedKey(*o)]
	if a == nil {
		a = &asked{}
		r.asked[observedKey(*o)] = a
	}
	a.attempts = max(a.attempts, o.Attempt)
	// An attempt during which we were stopped is followed by another one.
	if o.Error == nil || o.Error.Class != attest.Interrupted {
		a.ended++
		a.done = o.Probe != "" || o.Error == nil && o.Status < 500 && o.Status != 429 || a.ended > r.plan.Retries
	}
	r.mu.Unlock()
	r.budget.heed(o.Status, o.Header, o.ReceivedAt)
}

// state returns what became of a question so far.
func (r *runner) state(key string) asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.asked[key]; a != nil {
		return *a
	}
	return asked{}
}

// answered is how many questions are not to be asked again.
func (r *runner) answered() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.asked {
		if a.done {
			n++
		}
	}
	return n
}

// run asks what is not asked yet. It ends early, without an error, if ctx is
// done or nothing may be sent any more.
func (r *runner) run(ctx context.Context, opt ReplayOptions, probes []probe, traffic *noise, replay *attest.Replay) error {
	if r.answered() < len(r.s.Cases)+len(probes) && !r.budget.left() {
		return nil // as it was when it stopped: not even the pre-flight is asked
	}
	replay.Preflight = preflight(ctx, r.s, r.plan, r.tg)
	traffic.start(ctx, r)
	defer traffic.stop()
	var mu sync.Mutex // guards n and cases
	began, n, cases := time.Now(), 0, r.s.Cases
	// next returns a question that is to be asked, and when it is due.
	next := func() (c attest.Case, due *time.Time, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		for len(cases) > 0 && r.state(cases[0].ID).done {
			cases = cases[1:]
		}
		if len(cases) == 0 {
			return c, nil, false
		}
		// Question i is due at i/rate, whatever became of those before it. If all
		// connections are busy it is sent late, and its delay counts from when it
		// was due: a client that waits hides a stall from the questions behind it.
		if r.plan.RatePerSecond > 0 {
			at := began.Add(time.Duration(float64(n) / r.plan.RatePerSecond * float64(time.Second)))
			due = &at
		}
		c, cases = cases[0], cases[1:]
		n++
		return c, due, true
	}
	var group errgroup.Group
	group.SetLimit(r.plan.Concurrency)
	for range r.plan.Concurrency {
		group.Go(func() error {
			for c, due, ok := next(); ok; c, due, ok = next() {
				if due != nil {
					select {
					case <-time.After(time.Until(*due)):
					case <-ctx.Done():
					}
				}
				if ctx.Err() != nil || r.budget.stop() != nil {
					return nil
				}
				if err := r.ask(ctx, c, due); err != nil {
					mu.Lock()
					cases = nil // what cannot be recorded is not asked
					mu.Unlock()
					return err
				}
				if opt.Progress != nil && r.state(c.ID).done {
					opt.Progress(1)
				}
			}
			return nil
		})
	}
	err := group.Wait()
	traffic.stop()
	if err != nil {
		return err
	}
	// The noise probes come after all cases, so that no case is asked of a
	// server that has just answered it.
	for _, p := range probes {
		key := probeKey(p.kind, p.cases[0].ID)
		if r.state(key).done || ctx.Err() != nil {
			continue
		}
		group.Go(func() error {
			tg := r.tg
			if p.kind == attest.ProbeThreads {
				tg = r.other
			}
			sent, err := r.attempt(ctx, tg, p.question, p.request, attest.Observation{Case: p.cases[0].ID, Attempt: r.state(key).attempts + 1, Probe: p.kind}, nil)
			if sent && err == nil && opt.Progress != nil {
				opt.Progress(1)
			}
			return err
		})
	}
	return group.Wait()
}

// ask asks one question, and again as often as the plan allows while no
// answer comes. The verdict looks at the first attempt only.
func (r *runner) ask(ctx context.Context, c attest.Case, due *time.Time) error {
	q, _, _ := r.s.question(c, r.plan.Target)
	request, err := r.tg.Encode(q)
	if err != nil {
		return fmt.Errorf("case %s: %w", c.ID, err)
	}
	for {
		sent, err := r.attempt(ctx, r.tg, q, request, attest.Observation{Case: c.ID, Attempt: r.state(c.ID).attempts + 1}, due)
		if err != nil || !sent || r.state(c.ID).done {
			return err
		}
		due = nil // a further attempt is due when it is made
	}
}

// attempt sends a question once, and records what came of it: in o, which says
// what it is an attempt at. It does not, if nothing may be sent any more.
func (r *runner) attempt(ctx context.Context, tg target.Target, q target.Question, request []byte, o attest.Observation, due *time.Time) (sent bool, err error) {
	waited, ok := r.budget.take(ctx)
	if !ok {
		return false, nil
	}
	o.Request = digestOf(request)
	if err := r.journal.intend(o); err != nil {
		return false, err
	}
	// Whoever stops us waits for the answers to what was sent: a question is
	// not asked twice, and its answer is not thrown away.
	one, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(r.plan.TimeoutMillis)*time.Millisecond)
	x := tg.Send(one, request)
	cancel()
	o.WaitedMillis = waited.Milliseconds()
	observe(&o, x)
	if due != nil {
		at := due.Round(0).UTC()
		if o.SentAt.Before(at) {
			at = o.SentAt // timers and clocks are not of the same grain
		}
		o.DueAt = &at
	}
	if err := r.journal.add(&o); err != nil {
		return true, err
	}
	if r.plan.MaxTokens > 0 {
		r.budget.spend(usageOf(r.tg, q, &o))
	}
	r.note(&o)
	return true, nil
}

// digestOf is digest.FromBytes, which takes longer for the words around the sum
// than for the sum of a question.
func digestOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// observe records an exchange.
func observe(o *attest.Observation, x target.Exchange) {
	o.SentAt, o.ReceivedAt, o.Status, o.Header, o.Response = x.Sent, x.Received, x.Status, x.Header, x.Body
	for _, a := range x.Arrivals {
		o.Arrivals = append(o.Arrivals, attest.Arrival{Bytes: a.Bytes, Micros: a.After.Microseconds()})
	}
	if x.Failure != nil {
		o.Error = &attest.ObservationError{Class: x.Failure.Class, Message: x.Failure.Message}
	}
}

// preflight asks what has to hold before the cases mean anything. It uses two
// golden inputs; their answers are not judged here.
func preflight(ctx context.Context, s *Suite, plan attest.Plan, tg target.Target) (checks []attest.PreflightCheck) {
	check := func(name string, passed bool, detail string) {
		checks = append(checks, attest.PreflightCheck{Name: name, Passed: passed, Detail: detail})
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Duration(plan.TimeoutMillis)*time.Millisecond)
	defer cancel()
	d, err := tg.Describe(ctx)
	if err != nil {
		check("answers", false, err.Error())
		return checks
	}
	check("answers", true, strings.TrimSpace(d.Server+" "+d.ServerVersion+" "+d.Platform))
	check("serves the version", plan.Target.Version == "" || slices.Contains(d.Versions, plan.Target.Version),
		fmt.Sprintf("it declares %s with versions %v", d.Model, d.Versions))
	if plan.Threads != nil {
		checks = append(checks, preflightThreads(ctx, plan, d))
	}
	if p, ok := tg.(target.Prober); ok {
		q, _, _ := s.question(s.Cases[0], plan.Target)
		for _, c := range p.Probe(ctx, q) {
			check(c.Name, c.Passed, c.Detail)
		}
	}
	// What was said, so that it can be told from another answer.
	said := func(tensors []compare.Tensor, texts []attest.TextChoice) string {
		var b strings.Builder
		for _, t := range tensors {
			fmt.Fprintf(&b, "%q", t.Bits)
		}
		for _, t := range texts {
			fmt.Fprintf(&b, "%q %q %+v", t.Text, t.Refusal, t.ToolCalls)
		}
		return b.String()
	}
	ask := func(c attest.Case) (string, error) {
		q, _, _ := s.question(c, plan.Target)
		request, err := tg.Encode(q)
		if err != nil {
			return "", err
		}
		x := tg.Send(ctx, request)
		if x.Failure != nil {
			return "", x.Failure
		}
		a, err := tg.Decode(q, x.Response)
		if err != nil {
			return "", err
		}
		texts, err := textChoices(a)
		return said(a.Outputs, texts), err
	}
	if s.sampled() {
		return checks // two samples may be the same by chance; a store shows in their distribution
	}
	// Two cases whose golden answers differ must not get the same answer:
	// that would be a constant, or somebody's cache.
	first := s.Cases[0]
	_, _, golden := s.question(first, plan.Target)
	for _, c := range s.Cases[1:] {
		_, _, other := s.question(c, plan.Target)
		if said(golden, s.Texts[first.ID].Choices) == said(other, s.Texts[c.ID].Choices) {
			continue
		}
		a, err1 := ask(first)
		b, err2 := ask(c)
		if err := errors.Join(err1, err2); err != nil {
			check("different questions get different answers", false, err.Error())
		} else {
			check("different questions get different answers", a != b, first.ID+" and "+c.ID)
		}
		break
	}
	return checks
}

// observedKey is what an observation is of.
func observedKey(o attest.Observation) string {
	if o.Probe != "" {
		return probeKey(o.Probe, o.Case)
	}
	return o.Case
}

// noise is traffic beside the cases, and what came of it: in all runs of a
// replay together, but for one that was killed.
type noise struct {
	Answers  int `json:"answers"`
	Failures int `json:"failures"`

	path   string
	cancel context.CancelFunc // nil if none runs
	group  errgroup.Group
	mu     sync.Mutex // guards the counts while it runs
}

// fileNoise is where the counts of an earlier run are.
const fileNoise = "noise.json"

func openNoise(path string) (*noise, error) {
	n := &noise{path: path}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = attest.Unmarshal(raw, n)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; begin again in another folder", path, err)
	}
	return n, nil
}

// save keeps the counts for the next run.
func (n *noise) save() error {
	if n.Answers+n.Failures == 0 {
		return nil
	}
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return writeFile(n.path, raw)
}

// start keeps as many other questions in flight as the plan says: those of the
// suite, under other ids, in their order again and again.
func (n *noise) start(ctx context.Context, r *runner) {
	ctx, n.cancel = context.WithCancel(ctx)
	for worker := range r.plan.NoiseTraffic {
		n.group.Go(func() error {
			for i := worker; ctx.Err() == nil; i += r.plan.NoiseTraffic {
				q, _, _ := r.s.question(r.s.Cases[i%len(r.s.Cases)], r.plan.Target)
				q.ID = "noise"
				request, err := r.tg.Encode(q)
				if err != nil {
					return err
				}
				if _, ok := r.budget.take(ctx); !ok {
					return nil
				}
				// What was sent is out of the budget: its answer is waited for.
				one, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(r.plan.TimeoutMillis)*time.Millisecond)
				x := r.tg.Send(one, request)
				cancel()
				r.budget.heed(x.Status, x.Header, x.Received)
				n.mu.Lock()
				if x.Failure == nil && x.Status < 400 {
					n.Answers++
				} else {
					n.Failures++
				}
				n.mu.Unlock()
			}
			return nil
		})
	}
}

// stop ends the traffic.
func (n *noise) stop() {
	if n.cancel != nil {
		n.cancel()
		n.group.Wait()
	}
}
