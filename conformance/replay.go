package conformance

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	Concurrency       int           // 0 is 1
	Timeout           time.Duration // of one request; 0 is 30 s
	Retries           int           // further attempts, recorded and never judged
	RatePerSecond     float64       // an open-loop schedule; 0 is to ask as fast as answers come
	NoiseTraffic      int           // other questions kept in flight
	Probes            int           // cases asked again to measure noise; 0 is 32 for criteria of version 2
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
	if opt.Probes == 0 && opt.Suite.Criteria.Version >= 2 {
		opt.Probes = min(32, opt.Suite.Document.Claim)
	}
	p := attest.Plan{
		Model:           attest.ResourceOf("", opt.Model),
		Suite:           attest.ResourceOf(attest.SuiteType, opt.SuiteDigest),
		Criteria:        attest.ResourceOf(attest.CriteriaType, opt.CriteriaDigest),
		EnvironmentName: opt.Environment.Name, Environment: attest.ResourceOf(attest.EnvironmentType, opt.EnvironmentDigest),
		Target: opt.Environment.Target, Cases: len(opt.Suite.Cases), Order: opt.Suite.order(),
		Concurrency: opt.Concurrency, TimeoutMillis: int(opt.Timeout.Milliseconds()), Retries: opt.Retries, Probes: opt.Probes,
		RatePerSecond: opt.RatePerSecond, NoiseTraffic: opt.NoiseTraffic,
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
	Progress func(done int) // called after each case; done cases since the last call
}

// Replay asks an environment all questions of a suite and records every
// attempt: what was sent, what came back, when, or why nothing did. It judges
// nothing. A question that gets no answer is recorded as that, and the replay
// goes on.
func Replay(ctx context.Context, s *Suite, plan attest.Plan, planDigest digest.Digest, tg target.Target, opt ReplayOptions) (attest.Replay, []attest.Observation, error) {
	if err := s.validate(); err != nil {
		return attest.Replay{}, nil, err
	}
	if plan.Order != s.order() || plan.Cases != len(s.Cases) {
		return attest.Replay{}, nil, errors.New("the plan is for another suite")
	}
	j, err := openJournal(filepath.Join(opt.Dir, fileObservations))
	if err != nil {
		return attest.Replay{}, nil, err
	}
	defer j.close()
	replay := attest.Replay{
		Plan: attest.ResourceOf(attest.PlanType, planDigest), Model: plan.Model, Environment: plan.Environment,
		StartedAt: opt.Clock().UTC(), Preflight: preflight(ctx, s, plan, tg),
	}
	if len(j.list) > 0 && j.list[0].SentAt.Before(replay.StartedAt) {
		replay.StartedAt = j.list[0].SentAt
	}
	done := map[string]bool{}
	attempts := map[string]int{}
	for _, o := range j.list {
		key := observedKey(o)
		attempts[key] = o.Attempt
		// An attempt during which we were stopped is followed by another one.
		done[key] = o.Error == nil || o.Error.Class != attest.Interrupted
	}
	if opt.Progress != nil && len(done) > 0 {
		opt.Progress(len(done))
	}
	noise := startNoise(ctx, s, plan, tg)
	defer noise.stop()
	var group errgroup.Group
	group.SetLimit(plan.Concurrency)
	began, asked := time.Now(), 0
	for _, c := range s.Cases {
		if done[c.ID] {
			continue
		}
		// Question i is due at i/rate, whatever became of those before it. If all
		// connections are busy it is sent late, and its delay counts from when it
		// was due: a client that waits hides a stall from the questions behind it.
		var due *time.Time
		if plan.RatePerSecond > 0 {
			at := began.Add(time.Duration(float64(asked) / plan.RatePerSecond * float64(time.Second)))
			due = &at
			select {
			case <-time.After(time.Until(at)):
			case <-ctx.Done():
			}
		}
		asked++
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			err := attempt(ctx, s, plan, tg, c, j, attempts[c.ID], due)
			if err == nil && opt.Progress != nil {
				opt.Progress(1)
			}
			return err
		})
	}
	err = group.Wait()
	replay.NoiseAnswers, replay.NoiseFailures = noise.stop()
	if err != nil {
		return attest.Replay{}, nil, err
	}
	// The noise probes come after all cases, so that no case is asked of a
	// server that has just answered it.
	probes, err := s.probes(plan, tg)
	if err != nil {
		return attest.Replay{}, nil, err
	}
	for _, p := range probes {
		key := probeKey(p.kind, p.cases[0].ID)
		if done[key] || ctx.Err() != nil {
			continue
		}
		group.Go(func() error { return p.send(ctx, plan, tg, j, attempts[key]+1) })
	}
	if err := group.Wait(); err != nil {
		return attest.Replay{}, nil, err
	}
	if err := j.sync(); err != nil {
		return attest.Replay{}, nil, err
	}
	if err := ctx.Err(); err != nil {
		return attest.Replay{}, nil, fmt.Errorf("the replay was interrupted after %d observations: %w", len(j.list), err)
	}
	slices.SortStableFunc(j.list, func(a, b attest.Observation) int {
		return cmp.Or(strings.Compare(a.Probe, b.Probe), strings.Compare(a.Case, b.Case), a.Attempt-b.Attempt)
	})
	for _, o := range j.list {
		if o.Error != nil && o.Error.Class == attest.Interrupted {
			replay.Interrupted++
		}
	}
	replay.FinishedAt, replay.Observations = opt.Clock().UTC(), len(j.list)
	return replay, j.list, nil
}

// attempt asks one question, and again as often as the plan allows while no
// answer comes. The verdict looks at the first attempt only.
// before is how many attempts there were before we were stopped.
func attempt(ctx context.Context, s *Suite, plan attest.Plan, tg target.Target, c attest.Case, j *journal, before int, due *time.Time) error {
	q, _, _ := s.question(c, plan.Target)
	request, err := tg.Encode(q)
	if err != nil {
		return fmt.Errorf("case %s: %w", c.ID, err)
	}
	for n := before + 1; n <= before+1+plan.Retries; n++ {
		if err := j.intend(attest.Observation{Case: c.ID, Attempt: n, Request: string(digest.FromBytes(request))}); err != nil {
			return err
		}
		// Whoever stops us waits for the answers to what was sent: a question is
		// not asked twice, and its answer is not thrown away.
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(plan.TimeoutMillis)*time.Millisecond)
		x := tg.Send(one, request)
		cancel()
		o := observation(c.ID, n, request, x)
		if due != nil && n == before+1 {
			at := due.Round(0).UTC()
			if o.SentAt.Before(at) {
				at = o.SentAt // timers and clocks are not of the same grain
			}
			o.DueAt = &at
		}
		if err := j.add(o); err != nil {
			return err
		}
		if x.Failure == nil && x.Status < 500 && x.Status != 429 || ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// send asks a probe once.
func (p probe) send(ctx context.Context, plan attest.Plan, tg target.Target, j *journal, attempt int) error {
	if err := j.intend(attest.Observation{Case: p.cases[0].ID, Attempt: attempt, Probe: p.kind, Request: string(digest.FromBytes(p.request))}); err != nil {
		return err
	}
	one, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(plan.TimeoutMillis)*time.Millisecond)
	defer cancel()
	x := tg.Send(one, p.request)
	o := observation(p.cases[0].ID, attempt, p.request, x)
	o.Probe = p.kind
	return j.add(o)
}

// observation records an exchange.
func observation(id string, attempt int, request []byte, x target.Exchange) attest.Observation {
	o := attest.Observation{
		Case: id, Attempt: attempt, Request: string(digest.FromBytes(request)),
		SentAt: x.Sent, ReceivedAt: x.Received, Status: x.Status, Header: x.Header, Response: x.Body,
	}
	for _, a := range x.Arrivals {
		o.Arrivals = append(o.Arrivals, attest.Arrival{Bytes: a.Bytes, Micros: a.After.Microseconds()})
	}
	if x.Failure != nil {
		o.Error = &attest.ObservationError{Class: x.Failure.Class, Message: x.Failure.Message}
	}
	return o
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

// noise is traffic beside the cases.
type noise struct {
	cancel            context.CancelFunc
	group             errgroup.Group
	mu                sync.Mutex
	answers, failures int // guarded by mu
}

// startNoise keeps as many other questions in flight as the plan says: those of
// the suite, under other ids, in their order again and again.
func startNoise(ctx context.Context, s *Suite, plan attest.Plan, tg target.Target) *noise {
	n := &noise{}
	ctx, n.cancel = context.WithCancel(ctx)
	for worker := range plan.NoiseTraffic {
		n.group.Go(func() error {
			for i := worker; ctx.Err() == nil; i += plan.NoiseTraffic {
				q, _, _ := s.question(s.Cases[i%len(s.Cases)], plan.Target)
				q.ID = "noise"
				request, err := tg.Encode(q)
				if err != nil {
					return err
				}
				one, cancel := context.WithTimeout(ctx, time.Duration(plan.TimeoutMillis)*time.Millisecond)
				x := tg.Send(one, request)
				cancel()
				if ctx.Err() != nil {
					return nil
				}
				n.mu.Lock()
				if x.Failure == nil && x.Status < 400 {
					n.answers++
				} else {
					n.failures++
				}
				n.mu.Unlock()
			}
			return nil
		})
	}
	return n
}

// stop ends the traffic, and returns what came of it.
func (n *noise) stop() (answers, failures int) {
	n.cancel()
	n.group.Wait()
	return n.answers, n.failures
}

// A journal is the file of observations while they are made, with the attempts
// that were about to be made beside it. An attempt without an observation is one
// during which we were stopped: whether the question was sent is not known, so
// it is recorded as that and not sent again.
//
// It is synced in the background: a disk that is slow must not be measured as
// the environment.
type journal struct {
	mu       sync.Mutex
	f        *os.File // guarded by mu, as all below
	intents  *os.File
	list     []attest.Observation // in the file
	unsynced int                  // since the last sync began
	syncing  chan error           // what the running sync came to; nil if none runs
}

// syncEvery is how many observations a power cut may cost, and as many again
// that were made while a sync ran.
const syncEvery = 64

func openJournal(path string) (*journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f}
	whole := int64(0)
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break // a line without an end was being written when we were stopped
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		var o attest.Observation
		if err := attest.Unmarshal(line[:len(line)-1], &o); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s is damaged after %d bytes: %w; begin again in another folder", path, whole, err)
		}
		whole += int64(len(line))
		j.list = append(j.list, o)
	}
	if err := f.Truncate(whole); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(whole, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	if err := j.openIntents(path + ".intents"); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// openIntents reads which attempts were about to be made, and records those that
// have no observation as interrupted.
func (j *journal) openIntents(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if j.intents, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
		return err
	}
	if n := bytes.LastIndexByte(raw, '\n') + 1; n < len(raw) {
		// The line that was being written when we were stopped: the question is
		// sent after it, so it was not.
		if err := j.intents.Truncate(int64(n)); err != nil {
			return err
		}
		raw = raw[:n]
	}
	type made struct {
		key     string
		attempt int
	}
	seen := map[made]bool{}
	for _, o := range j.list {
		seen[made{observedKey(o), o.Attempt}] = true
	}
	for line := range bytes.Lines(raw) {
		var o attest.Observation
		if err := json.Unmarshal(line, &o); err != nil {
			return fmt.Errorf("%s is damaged: %w; begin again in another folder", path, err)
		}
		if seen[made{observedKey(o), o.Attempt}] {
			continue
		}
		o.Error = &attest.ObservationError{Class: attest.Interrupted, Message: "the runner was stopped while it waited for an answer"}
		o.ReceivedAt = o.SentAt
		if err := j.add(o); err != nil {
			return err
		}
	}
	return nil
}

// intend writes down that an attempt is about to be made. It needs no sync: what
// a SIGKILL leaves of a write is all of it, and after a power cut the attempts of
// the last moment are asked again, which the record then does not show.
func (j *journal) intend(o attest.Observation) error {
	o.SentAt = time.Now().UTC()
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.intents.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("recording an attempt: %w", err)
	}
	return nil
}

func (j *journal) add(o attest.Observation) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("recording an observation: %w", err)
	}
	j.list = append(j.list, o)
	j.unsynced++
	if j.unsynced >= 2*syncEvery {
		if err := j.synced(); err != nil {
			return err
		}
	}
	if j.unsynced >= syncEvery && j.syncing == nil {
		j.unsynced = 0
		j.syncing = make(chan error, 1)
		go func(f *os.File, done chan<- error) { done <- f.Sync() }(j.f, j.syncing)
	}
	if len(j.syncing) > 0 {
		return j.synced()
	}
	return nil
}

// synced waits for the sync that runs, if one does. The caller holds mu.
func (j *journal) synced() error {
	if j.syncing == nil {
		return nil
	}
	err := <-j.syncing
	j.syncing = nil
	if err != nil {
		return fmt.Errorf("recording observations: %w", err)
	}
	return nil
}

func (j *journal) sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.synced(), j.f.Sync())
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.synced()
	j.f.Close()
	if j.intents != nil {
		j.intents.Close()
	}
}
