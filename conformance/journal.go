package conformance

import (
	"bufio"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/assay-dev/assay/verify/attest"
)

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
	unsynced int        // since the last sync began
	syncing  chan error // what the running sync came to; nil if none runs
}

// syncEvery is how many observations a power cut may cost, and as many again
// that were made while a sync ran.
const syncEvery = 64

// openJournal opens a journal and calls each for the observations in it, in the
// order in which they were made, and for the attempts that the last run did not
// see the end of, which it adds: those that are not known.
func openJournal(path string, each func(*attest.Observation) error, known func(attest.Observation) bool) (*journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f}
	whole, err := j.each(attest.Unmarshal, each)
	if err == nil {
		// A line without an end was being written when we were stopped.
		err = f.Truncate(whole)
	}
	if err == nil {
		_, err = f.Seek(whole, io.SeekStart)
	}
	if err == nil {
		err = j.openIntents(path+".intents", each, known)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// each decodes each observation in the file and calls a function for it, in their
// order, and returns where their whole lines end.
func (j *journal) each(decode func([]byte, any) error, f func(*attest.Observation) error) (whole int64, err error) {
	if _, err := j.f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	for lines := bufio.NewReaderSize(j.f, 1<<16); ; {
		var batch [][]byte
		for size := 0; len(batch) < batchLines && size < batchBytes && err == nil; {
			var line []byte
			if line, err = lines.ReadBytes('\n'); err == nil {
				batch, size = append(batch, line), size+len(line)
			}
		}
		if err != nil && err != io.EOF {
			return whole, err
		}
		observations, errs := decodeAll(batch, decode)
		for i := range batch {
			if errs[i] != nil {
				return whole, fmt.Errorf("%s is damaged after %d bytes: %w; begin again in another folder", j.f.Name(), whole, errs[i])
			}
			whole += int64(len(batch[i]))
			if err := f(&observations[i]); err != nil {
				return whole, err
			}
		}
		if err == io.EOF {
			return whole, nil
		}
	}
}

// So much of the journal is in memory while it is read.
const (
	batchLines = 512
	batchBytes = 4 << 20
)

// decodeAll decodes lines on all processors.
func decodeAll(batch [][]byte, decode func([]byte, any) error) (list []attest.Observation, errs []error) {
	list, errs = make([]attest.Observation, len(batch)), make([]error, len(batch))
	var group errgroup.Group
	share := max(1, len(batch)/runtime.GOMAXPROCS(0)+1)
	for from := 0; from < len(batch); from += share {
		group.Go(func() error {
			for i := from; i < min(from+share, len(batch)); i++ {
				errs[i] = decode(batch[i][:len(batch[i])-1], &list[i])
			}
			return nil
		})
	}
	group.Wait()
	return list, errs
}

// read returns the observations in the order in which they are published.
func (j *journal) read(s *Suite) (list []attest.Observation, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	share := newSharing(s)
	// Each line was either checked when the journal was opened or written by us
	// since: it needs no second check, which takes longer than all else here.
	_, err = j.each(json.Unmarshal, func(o *attest.Observation) error {
		share.observation(o)
		list = append(list, *o)
		return nil
	})
	slices.SortStableFunc(list, func(a, b attest.Observation) int {
		return cmp.Or(strings.Compare(a.Probe, b.Probe), strings.Compare(a.Case, b.Case), a.Attempt-b.Attempt)
	})
	return list, err
}

// sharing lets observations have one copy of what many of them have: of a
// hundred thousand, ids, digests and headers would be most of the memory.
type sharing struct {
	known   map[string]string
	headers map[string]map[string]string
}

func newSharing(s *Suite) sharing {
	share := sharing{known: make(map[string]string, 2*len(s.Cases)), headers: map[string]map[string]string{}}
	for _, c := range s.Cases {
		share.known[c.ID], share.known[c.Request] = c.ID, c.Request
	}
	return share
}

func (s sharing) observation(o *attest.Observation) {
	for _, text := range []*string{&o.Case, &o.Request, &o.Probe} {
		if t, ok := s.known[*text]; ok {
			*text = t
		}
	}
	if o.Header == nil {
		return
	}
	key := fmt.Sprint(o.Header) // in the order of its keys
	if _, ok := s.headers[key]; !ok {
		if len(s.headers) >= 1024 {
			return // ids and times are in them: there is nothing to share
		}
		s.headers[key] = o.Header
	}
	o.Header = s.headers[key]
}

// openIntents reads which attempts were about to be made, and records those that
// have no observation as interrupted.
func (j *journal) openIntents(path string, each func(*attest.Observation) error, known func(attest.Observation) bool) error {
	var err error
	if j.intents, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644); err != nil {
		return err
	}
	whole := int64(0)
	for lines := bufio.NewReaderSize(j.intents, 1<<16); ; {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			// The line that was being written when we were stopped: the question
			// is sent after it, so it was not.
			return j.intents.Truncate(whole)
		}
		if err != nil {
			return err
		}
		whole += int64(len(line))
		var o attest.Observation
		if err := json.Unmarshal(line, &o); err != nil {
			return fmt.Errorf("%s is damaged: %w; begin again in another folder", path, err)
		}
		if known(o) {
			continue
		}
		o.Error = &attest.ObservationError{Class: attest.Interrupted, Message: "the runner was stopped while it waited for an answer"}
		o.ReceivedAt = o.SentAt
		if err := errors.Join(j.add(&o), each(&o)); err != nil {
			return err
		}
	}
}

// intend writes down that an attempt is about to be made. It needs no sync: what
// a SIGKILL leaves of a write is all of it, and after a power cut the attempts of
// the last moment are asked again, which the record then does not show.
func (j *journal) intend(o attest.Observation) error {
	o.SentAt = time.Now().UTC()
	l := linePool.Get().(*[]byte)
	defer linePool.Put(l)
	var err error
	if *l, err = appendLine((*l)[:0], &o); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.intents.Write(*l); err != nil {
		return fmt.Errorf("recording an attempt: %w", err)
	}
	return nil
}

// linePool has the memory that lines are made in.
var linePool = sync.Pool{New: func() any { return new([]byte) }}

// add writes down what came of an attempt. An observation that is larger than a
// document may be, so that nobody would read it again, is made one of an answer
// that was too large.
func (j *journal) add(o *attest.Observation) error {
	l := linePool.Get().(*[]byte)
	defer linePool.Put(l)
	var err error
	if *l, err = appendLine((*l)[:0], o); err != nil {
		return err
	}
	if len(*l) > attest.MaxDocument {
		o.Error = &attest.ObservationError{Class: "too-large", Message: fmt.Sprintf("an observation may have %d bytes in all, and the answer of %d bytes makes it one of %d", attest.MaxDocument, len(o.Response), len(*l))}
		o.Status, o.Header, o.Response, o.Arrivals = 0, nil, nil, nil
		if *l, err = appendLine((*l)[:0], o); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.Write(*l); err != nil {
		return fmt.Errorf("recording an observation: %w", err)
	}
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

// appendLine appends what json.Marshal makes of an observation, and the end of
// the line. It is written out because it is done twice for each question while
// others are being timed, and without reflection takes a fifth of the time.
func appendLine(b []byte, o *attest.Observation) ([]byte, error) {
	b = appendString(append(b, `{"case":`...), o.Case)
	b = strconv.AppendInt(append(b, `,"attempt":`...), int64(o.Attempt), 10)
	if o.Probe != "" {
		b = appendString(append(b, `,"probe":`...), o.Probe)
	}
	var err error
	if o.DueAt != nil {
		if b, err = appendTime(append(b, `,"dueAt":`...), *o.DueAt); err != nil {
			return nil, err
		}
	}
	if o.WaitedMillis != 0 {
		b = strconv.AppendInt(append(b, `,"waitedMillis":`...), o.WaitedMillis, 10)
	}
	b = appendString(append(b, `,"request":`...), o.Request)
	if b, err = appendTime(append(b, `,"sentAt":`...), o.SentAt); err != nil {
		return nil, err
	}
	if b, err = appendTime(append(b, `,"receivedAt":`...), o.ReceivedAt); err != nil {
		return nil, err
	}
	if o.Status != 0 {
		b = strconv.AppendInt(append(b, `,"status":`...), int64(o.Status), 10)
	}
	for i, name := range slices.Sorted(maps.Keys(o.Header)) {
		b = appendString(append(b, [...]string{`,"header":{`, `,`}[min(i, 1)]...), name)
		b = appendString(append(b, ':'), o.Header[name])
	}
	if len(o.Header) > 0 {
		b = append(b, '}')
	}
	if len(o.Response) > 0 {
		b = base64.StdEncoding.AppendEncode(append(b, `,"response":"`...), o.Response)
		b = append(b, '"')
	}
	for i, a := range o.Arrivals {
		b = strconv.AppendInt(append(b, [...]string{`,"arrivals":[{"bytes":`, `,{"bytes":`}[min(i, 1)]...), int64(a.Bytes), 10)
		b = append(strconv.AppendInt(append(b, `,"micros":`...), a.Micros, 10), '}')
	}
	if len(o.Arrivals) > 0 {
		b = append(b, ']')
	}
	if o.Error != nil {
		raw, err := json.Marshal(o.Error)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"error":`...), raw...)
	}
	return append(b, "}\n"...), nil
}

func appendTime(b []byte, t time.Time) ([]byte, error) {
	b, err := t.AppendText(append(b, '"'))
	return append(b, '"'), err
}

// appendString appends a string as json.Marshal writes it.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			raw, _ := json.Marshal(s) // no string fails
			return append(b, raw...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
