package registry

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify/attest"
)

const (
	// uploadBuffer is the piece in which bytes go to the disk: so large that
	// writing it past the page cache costs next to nothing. An upload has six,
	// one that is received and five that are written and hashed, or wait for
	// that, so that a disk that is slow for a moment, or syncs what it has,
	// stops nobody. Small uploads, and all while there are many, do with
	// smallBuffer, and fewer.
	uploadBuffer = 4 << 20
	maxFlights   = 5
	smallBuffer  = 256 << 10
	smallFlights = 3

	// firstBuffer is what a client has to have sent of a piece before it gets
	// one of those: one that begins and then stands still costs little.
	firstBuffer = 8 << 10

	// hashPiece is how much is received before it is hashed, by a goroutine of
	// its own while more is received; what is shorter than hashBeside is not
	// worth one.
	hashPiece  = 1 << 20
	hashBeside = 64 << 10

	// largeBuffers is how many large ones there are for all uploads together.
	largeBuffers = 24

	// checkpointEvery is how many bytes a crash may cost an upload, or as many
	// as come in checkpointAfter, if those are more: an upload that is fast
	// would stand still for syncs, and is as fast in making up for it.
	checkpointEvery = 256 << 20
	checkpointAfter = 2 * time.Second

	// maxUploads bounds the sessions in memory, and maxUploadsEach those of
	// one actor, so that nobody takes them all.
	maxUploads     = 10_000
	maxUploadsEach = 1_000
)

// An Upload is a session in which a blob is sent.
type Upload struct {
	ID     string
	Offset int64 // bytes received and written
}

// A StartUpload describes an upload before its first byte.
type StartUpload struct {
	// Algorithm is the digest's, if it is known: else SHA-256 is assumed,
	// and another one costs reading the bytes again at the end.
	Algorithm digest.Algorithm
}

// A Chunk is a piece of an upload.
type Chunk struct {
	// At is where the piece begins; -1 is wherever the upload stands.
	At int64

	// Rewind says that an At before the end is no mistake: the client did not
	// hear that a piece was received, and sends it again.
	Rewind bool

	Body io.Reader

	// Size is how many bytes Body has, or -1. Fewer are an error, after which
	// the upload can be resumed.
	Size int64
}

// uploadRow is what a crash leaves of a session.
type uploadRow struct {
	Repository string           `json:"repository"`
	Key        store.Key        `json:"key"`
	Algorithm  digest.Algorithm `json:"algorithm"`
	Marks      []mark           `json:"marks,omitempty"` // in order
	At         time.Time        `json:"at"`
}

// A mark is a place in an upload up to which all bytes are durable, with the
// state of the hash after them. The last one is where an upload goes on after
// a crash; the others are where pieces began that a client may send again.
type mark struct {
	Offset int64  `json:"offset"`
	State  []byte `json:"state"`
	Within bool   `json:"within,omitempty"` // a piece, and not at its end
}

// marksKept is how many pieces a client can go back without the bytes before
// them being hashed again.
const marksKept = 8

type uploads struct {
	mu       sync.Mutex          // taken after a session's, never before
	sessions map[string]*session // guarded by mu
	each     map[string]int      // how many an actor has; guarded by mu
}

// add and remove keep the counts right. u.mu is held.
func (u *uploads) add(s *session) {
	u.sessions[s.id] = s
	u.each[s.actor]++
}

func (u *uploads) remove(s *session) {
	if u.sessions[s.id] != s {
		return
	}
	delete(u.sessions, s.id)
	if u.each[s.actor]--; u.each[s.actor] == 0 {
		delete(u.each, s.actor)
	}
}

func (u *uploads) all() []*session {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Collect(maps.Values(u.sessions))
}

// A session is an upload in memory. Its bytes are written by whichever
// request holds mu; a request never waits for its client while it holds it,
// so a newer request takes over from one whose client has gone away.
type session struct {
	id, repo string
	actor    string
	alg      digest.Algorithm

	mu      sync.Mutex
	owner   int               // guarded by mu, as all below: the newest request
	writer  store.BlobWriter  // nil before the first byte
	hash    *attest.PieceHash // of what has come, when that is hashed: see hashed
	hashing *hashing          // the last that came; nil if nothing did
	flights []*flight         // on their way to the disk, in order
	offset  int64             // written
	state   []byte            // of the hash after offset bytes; nil at 0
	marks   []mark            // of the row
	states  int               // of pieces, that are in rows
	hasRow  bool
	gone    bool
	active  time.Time
	marked  time.Time // when the last mark was made, or the session began here

	toHash, toWrite line // not guarded by mu
}

func (u *uploads) close() {
	for _, s := range u.all() {
		s.mu.Lock()
		s.owner++
		for _, f := range s.flights {
			<-f.done
		}
		if s.writer != nil {
			s.writer.Close()
		}
		s.gone = true
		s.mu.Unlock()
	}
}

// durable is up to where the upload would survive a crash.
func (s *session) durable() mark {
	if len(s.marks) == 0 {
		return mark{}
	}
	return s.marks[len(s.marks)-1]
}

// rehash sets the hash to what it was at a mark. states are those of the
// pieces before it, or more.
func (s *session) rehash(m mark, states []byte) error {
	s.hash, s.hashing = attest.NewPieceHash(s.alg), nil
	if err := s.hash.Resume(m.Offset, m.State, states); err != nil {
		return fmt.Errorf("upload %s: hash state: %w", s.id, err)
	}
	s.states = min(s.states, int(m.Offset/attest.PieceSize))
	return nil
}

// StartUpload begins an upload. One that has received nothing does not outlive
// a crash: its client begins another.
func (r *Registry) StartUpload(ctx context.Context, actor access.Actor, repo string, start StartUpload) (Upload, error) {
	if err := checkName(repo); err != nil {
		return Upload{}, err
	}
	if err := actor.Authorize(access.Push, repo); err != nil {
		return Upload{}, err
	}
	if start.Algorithm == "" {
		start.Algorithm = digest.SHA256
	}
	if start.Algorithm != digest.SHA256 && start.Algorithm != digest.SHA512 {
		return Upload{}, fmt.Errorf("%w: algorithm %q: use sha256 or sha512", ErrDigestInvalid, start.Algorithm)
	}
	if err := r.blobs.Ready(); err != nil {
		return Upload{}, err
	}
	var raw [16]byte
	rand.Read(raw[:])
	s := &session{
		id: hex.EncodeToString(raw[:]), repo: repo, actor: actor.ID, alg: start.Algorithm,
		hash: attest.NewPieceHash(start.Algorithm),
	}
	s.active = r.clock()
	s.marked = s.active
	r.uploads.mu.Lock()
	defer r.uploads.mu.Unlock()
	if len(r.uploads.sessions) >= maxUploads {
		return Upload{}, fmt.Errorf("%w: %d uploads are running", ErrTooManyUploads, maxUploads)
	}
	if mine := r.uploads.each[actor.ID]; mine >= maxUploadsEach {
		return Upload{}, fmt.Errorf("%w: you have %d that are not finished; finish or cancel some, or wait until they expire", ErrTooManyUploads, mine)
	}
	r.uploads.add(s)
	r.leases.renew(repo, r.clock())
	return Upload{ID: s.id}, nil
}

// ErrTooManyUploads says that no more uploads can be begun now.
var ErrTooManyUploads = errors.New("too many uploads")

// session finds a session of a repository, in memory or where a crash left it.
func (r *Registry) session(ctx context.Context, actor access.Actor, repo, id string) (*session, error) {
	if err := checkName(repo); err != nil {
		return nil, err
	}
	if err := actor.Authorize(access.Push, repo); err != nil {
		return nil, err
	}
	unknown := fmt.Errorf("%w: %.64q in %s; begin a new one", ErrUploadUnknown, id, repo)
	if len(id) != 32 {
		return nil, unknown
	}
	r.uploads.mu.Lock()
	s := r.uploads.sessions[id]
	r.uploads.mu.Unlock()
	if s != nil {
		if s.repo != repo {
			return nil, unknown
		}
		return s, nil
	}
	var row uploadRow
	var states []byte
	err := r.view(ctx, func(rd store.Reader) error {
		ok, err := load(rd, key("upload", id), &row)
		if err == nil && (!ok || row.Repository != repo) {
			err = unknown
		}
		if err == nil {
			states, err = loadStates(rd, "uploadstates", id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	r.uploads.mu.Lock()
	defer r.uploads.mu.Unlock()
	if s := r.uploads.sessions[id]; s != nil {
		return s, nil
	}
	w, err := r.blobs.Resume(ctx, row.Key)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	s = &session{
		id: id, repo: repo, actor: actor.ID, alg: row.Algorithm, writer: w,
		marks: row.Marks, hasRow: true,
	}
	s.active = r.clock()
	s.marked = s.active
	// What came after the last mark may be there or not.
	last := s.durable()
	s.states = len(states)
	if err := orElse(w.Truncate(last.Offset), s.rehash(last, states)); err != nil {
		w.Close()
		return nil, err
	}
	s.offset, s.state = last.Offset, last.State
	r.uploads.add(s)
	return s, nil
}

// StatUpload says how far an upload has come.
func (r *Registry) StatUpload(ctx context.Context, actor access.Actor, repo, id string) (Upload, error) {
	s, err := r.session(ctx, actor, repo, id)
	if err != nil {
		return Upload{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := r.interrupt(ctx, s); err != nil {
		return Upload{}, err
	}
	return Upload{s.id, s.offset}, nil
}

// AppendUpload receives a piece of an upload. Whatever arrived of a piece
// that broke off stays, and the upload goes on from there.
func (r *Registry) AppendUpload(ctx context.Context, actor access.Actor, repo, id string, c Chunk) (Upload, error) {
	s, err := r.session(ctx, actor, repo, id)
	if err != nil {
		return Upload{}, err
	}
	owner, err := r.take(ctx, s, c)
	if err != nil {
		return Upload{}, err
	}
	received := r.receive(ctx, s, owner, c)
	if errors.Is(received, errFenced) {
		return Upload{}, received
	}
	// The connection may be gone, and the checkpoint must be made all the same.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != owner || s.gone {
		return Upload{}, errFenced
	}
	if err := r.saveCheckpoint(context.WithoutCancel(ctx), s, false); err != nil && received == nil {
		return Upload{}, err
	}
	return Upload{s.id, s.offset}, received
}

var errFenced = fmt.Errorf("%w: another request has taken it over", ErrUploadInvalid)

// interrupt waits until a session's offset is what was written of it, for
// somebody who may not be its owner. If that failed, what the owner has
// received since fits to nothing, and it is fenced. The session's lock is held.
func (r *Registry) interrupt(ctx context.Context, s *session) error {
	err := r.settle(ctx, s, 0)
	switch {
	case s.gone:
		return fmt.Errorf("%w: %s", ErrUploadUnknown, s.id)
	case err != nil:
		s.owner++
	}
	return err
}

// take makes the caller the session's one writer, at the place its piece
// begins.
func (r *Registry) take(ctx context.Context, s *session, c Chunk) (owner int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := r.interrupt(ctx, s); err != nil {
		return 0, err
	}
	at := c.At
	switch {
	case at < 0:
		at = s.offset
	case at > s.offset || at < s.offset && !c.Rewind:
		// "If a chunk is uploaded out of order, the registry MUST respond
		// with a response code of 416" (distribution-spec, Pushing a blob in
		// chunks).
		return 0, fmt.Errorf("%w: the piece begins at %d and %d bytes are there", ErrRangeInvalid, at, s.offset)
	}
	s.owner++
	s.active = r.clock()
	if at < s.offset || s.hashed().Len() != s.offset {
		// To somewhere before, or the last owner had received more than it wrote.
		if err := r.rewind(context.WithoutCancel(ctx), s, at); err != nil {
			return 0, err
		}
	}
	return s.owner, nil
}

// rewind drops the bytes from offset on. If they are not just those that were
// not written, the ones before them are hashed again from the last mark on. The
// session's lock is held, and nothing is on its way to the disk.
func (r *Registry) rewind(ctx context.Context, s *session, offset int64) error {
	keep := s.marks
	for len(keep) > 0 && keep[len(keep)-1].Offset > offset {
		keep = keep[:len(keep)-1]
	}
	if len(keep) < len(s.marks) {
		// The row must not promise bytes that are about to go, and whose place
		// others may take.
		s.marks = keep
		if err := r.saveMarks(ctx, s); err != nil {
			return err
		}
	}
	if s.writer != nil {
		if err := s.writer.Truncate(offset); err != nil {
			return err
		}
	}
	from := s.durable()
	if offset == s.offset {
		from = mark{Offset: offset, State: s.state}
	}
	if err := s.rehash(from, s.hashed().States()); err != nil {
		return err
	}
	if from.Offset < offset {
		if _, err := io.CopyBuffer(s.hash, io.NewSectionReader(s.writer, from.Offset, offset-from.Offset), make([]byte, uploadBuffer)); err != nil {
			return err
		}
	}
	s.offset, s.state = offset, s.hash.Mark()
	return nil
}

// receive copies a piece into the session. What has come is hashed while more
// is received, and written when it fills a buffer, hashed or not. A buffer is
// lent on when it is both.
func (r *Registry) receive(ctx context.Context, s *session, owner int, c Chunk) error {
	if c.Body == nil || c.Size == 0 {
		return nil
	}
	body, first := c.Body, make([]byte, firstBuffer)
	if c.Size >= 0 {
		body, first = io.LimitReader(body, c.Size), first[:min(c.Size, firstBuffer)]
	}
	var got int64
	for over := false; !over; {
		var broken error
		p := piece{buf: first}
		for p.n < len(p.buf) && !over {
			m, err := body.Read(p.buf[p.n:min(p.taken+hashPiece, len(p.buf))])
			p.n, got = p.n+m, got+int64(m)
			if over = err != nil || got == c.Size; err != nil && err != io.EOF {
				broken = err
			}
			if p.n == len(p.buf) && !p.lent && !over {
				// How much comes is known from the announcement, or from what came.
				p.buf, p.lent = r.buffers.get(max(c.Size, got)), true
				copy(p.buf, first)
			}
			if err := s.feed(owner, &p, over); err != nil {
				r.giveBack(p)
				return err
			}
		}
		if err := r.write(ctx, s, owner, p, c.Size, over); err != nil {
			return err
		}
		if broken != nil {
			return fmt.Errorf("%w: receiving after %d bytes: %w", ErrUploadInvalid, got, broken)
		}
	}
	if c.Size >= 0 && got != c.Size {
		return fmt.Errorf("%w: %d bytes were announced and %d came", ErrSizeInvalid, c.Size, got)
	}
	return nil
}

// A piece is bytes that are received into a buffer.
type piece struct {
	buf     []byte
	lent    bool     // and to be given back
	n       int      // bytes that have come
	taken   int      // those of them that are hashed, or will be
	hashing *hashing // the last of those; nil if there are none
}

// giveBack is for a piece that nobody writes, or not any more.
func (r *Registry) giveBack(p piece) {
	if p.hashing != nil {
		<-p.hashing.done
	}
	if p.lent {
		r.buffers.put(p.buf)
	}
}

// feed has hashed what came of a piece, if it is enough, or the buffer is full,
// or the last.
func (s *session) feed(owner int, p *piece, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != owner || s.gone {
		return errFenced
	}
	data := p.buf[p.taken:p.n]
	if len(data) == 0 || len(data) < hashPiece && p.n < len(p.buf) && !last {
		return nil
	}
	h, hash := &hashing{data: data, done: make(chan struct{})}, s.hash
	if len(data) < hashBeside {
		h.run(s.hashed())
	} else {
		s.toHash.add(func() { h.run(hash) })
	}
	p.taken, p.hashing, s.hashing = p.n, h, h
	return nil
}

// A hashing is bytes that are hashed.
type hashing struct {
	data  []byte
	done  chan struct{} // closed when the following is set
	state []byte        // after them
}

func (h *hashing) run(hash *attest.PieceHash) {
	defer close(h.done)
	hash.Write(h.data)
	h.data, h.state = nil, hash.Mark()
}

// hashed is the hash, when it has all that came. The session's lock is held.
func (s *session) hashed() *attest.PieceHash {
	if s.hashing != nil {
		<-s.hashing.done
	}
	return s.hash
}

// buffers lends pieces to uploads. The large ones, which make them fast, are
// counted; whoever comes when all are lent gets small ones, so memory is
// bounded and nobody waits for somebody else's slow client.
//
// The one that came back last is lent first: an upload goes on with the same
// few, which the processor has near. Going round all of them, SHA-256 took half
// as long again.
type buffers struct {
	mu   sync.Mutex
	free [][]byte // guarded by mu
	made int      // guarded by mu
}

// get lends a buffer to an upload of about this size.
func (b *buffers) get(size int64) []byte {
	if size >= uploadBuffer {
		b.mu.Lock()
		defer b.mu.Unlock()
		if last := len(b.free) - 1; last >= 0 {
			buf := b.free[last]
			b.free = b.free[:last]
			return buf
		}
		if b.made < largeBuffers {
			b.made++
			return store.NewBuffer(uploadBuffer)
		}
	}
	return make([]byte, min(max(size, 512), smallBuffer))
}

// put takes a buffer back, which must not be used any more.
func (b *buffers) put(buf []byte) {
	if cap(buf) == uploadBuffer {
		b.mu.Lock()
		b.free = append(b.free, buf[:uploadBuffer])
		b.mu.Unlock()
	}
}

// write writes a piece. If more are to come it does not wait for the disk.
func (r *Registry) write(ctx context.Context, s *session, owner int, p piece, announced int64, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != owner || s.gone {
		r.giveBack(p)
		return errFenced
	}
	left := maxFlights - 1
	if len(p.buf) < uploadBuffer {
		left = smallFlights - 1
	}
	if last {
		left = 0
	}
	if err := r.settle(ctx, s, left); err != nil || p.n == 0 {
		r.giveBack(p)
		return err
	}
	if s.writer == nil {
		// What came is kept even if the client has gone away meanwhile.
		w, err := r.blobs.Create(context.WithoutCancel(ctx), announced)
		if err != nil {
			r.giveBack(p)
			return orElse(r.rewind(context.WithoutCancel(ctx), s, s.offset), err)
		}
		s.writer = w
	}
	f := &flight{piece: p, done: make(chan struct{})}
	if n := len(s.flights); n > 0 {
		f.before = s.flights[n-1]
	}
	s.flights = append(s.flights, f)
	if last { // and the only one
		f.fly(s.writer)
		return r.settle(ctx, s, 0)
	}
	w := s.writer
	s.toWrite.add(func() { f.fly(w) })
	return nil
}

// A flight is a piece on its way to the disk. It may still be being hashed.
type flight struct {
	before *flight // whose bytes come first; nil if those are written
	piece  piece

	done chan struct{} // closed when the following are set
	n    int
	err  error
}

func (f *flight) fly(w store.BlobWriter) {
	defer close(f.done)
	if f.before != nil {
		if f.err = f.before.err; f.err != nil {
			return // their place is not there
		}
		f.before = nil
	}
	f.n, f.err = w.Write(f.piece.buf[:f.piece.n])
}

// A line does one thing after the other, in a goroutine that lives as long as
// there is something to do. What waited for its turn in a goroutine of its own
// would have to be woken for it, and the disk be idle until it is.
type line struct {
	mu   sync.Mutex
	next []func() // guarded by mu
	busy bool     // there is the goroutine; guarded by mu
}

func (l *line) add(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = append(l.next, f)
	if !l.busy {
		l.busy = true
		go l.work()
	}
}

func (l *line) work() {
	for {
		l.mu.Lock()
		if len(l.next) == 0 {
			l.busy, l.next = false, nil
			l.mu.Unlock()
			return
		}
		f := l.next[0]
		l.next = l.next[1:]
		l.mu.Unlock()
		f()
	}
}

// settle waits until no more than left flights are on their way, and takes up
// those that have arrived as written. After an error there are none, and the
// session stands where it stood before the one that failed. The session's lock
// is held.
func (r *Registry) settle(ctx context.Context, s *session, left int) error {
	for {
		if s.due() {
			left = 0 // a sync waits for all that is being written
		}
		if len(s.flights) <= left {
			break
		}
		if err := r.land(ctx, s); err != nil {
			return err
		}
	}
	if s.due() {
		return r.saveCheckpoint(context.WithoutCancel(ctx), s, true)
	}
	return nil
}

// due reports whether a crash would cost too much. The session's lock is held.
func (s *session) due() bool {
	return s.offset-s.durable().Offset >= checkpointEvery && s.active.Sub(s.marked) >= checkpointAfter
}

// land does that for the first flight.
func (r *Registry) land(ctx context.Context, s *session) error {
	f := s.flights[0]
	<-f.done
	s.flights = s.flights[1:]
	r.giveBack(f.piece)
	if f.err != nil {
		r.abandon(s)
		if e := r.rewind(context.WithoutCancel(ctx), s, s.offset); e != nil {
			r.log.Warn("upload cannot go on", "upload", s.id, "error", e)
			r.drop(s)
		}
		return fmt.Errorf("writing %d of %d bytes: %w", f.n, f.piece.n, f.err)
	}
	s.offset += int64(f.piece.n)
	s.state = f.piece.hashing.state
	s.active = r.clock()
	r.leases.renew(s.repo, s.active)
	return nil
}

// abandon waits for what is on its way to the disk, whatever becomes of it. The
// session's lock is held.
func (r *Registry) abandon(s *session) {
	for _, f := range s.flights {
		<-f.done
		r.giveBack(f.piece)
	}
	s.flights = nil
}

// saveCheckpoint makes what was received durable, and then a mark that says so;
// within tells that more of the piece is to come. The session's lock is held.
func (r *Registry) saveCheckpoint(ctx context.Context, s *session, within bool) error {
	if s.writer == nil || s.offset == s.durable().Offset && s.hasRow {
		return nil
	}
	if err := s.writer.Sync(); err != nil {
		return err
	}
	before := s.marks
	kept := slices.Clone(before)
	if s.durable().Within {
		kept = kept[:len(kept)-1]
	}
	kept = kept[max(0, len(kept)-marksKept):]
	s.marks = append(kept, mark{s.offset, s.state, within})
	if err := r.saveMarks(ctx, s); err != nil {
		s.marks = before
		return err
	}
	s.marked = r.clock()
	return nil
}

func (r *Registry) saveMarks(ctx context.Context, s *session) error {
	row := uploadRow{Repository: s.repo, Key: s.writer.Key(), Algorithm: s.alg, Marks: s.marks, At: r.clock()}
	states := s.hashed().States()
	// Those of bytes that are not written yet are left out.
	states = states[:min(len(states), int(s.offset/attest.PieceSize)*s.hash.StateSize())]
	if err := r.submit(ctx, func(tx *txn) error {
		tx.put(key("upload", s.id), row)
		putStates(tx, "uploadstates", s.id, states, s.states*s.hash.StateSize())
		return nil
	}); err != nil {
		return err
	}
	s.hasRow, s.states = true, len(states)/s.hash.StateSize()
	return nil
}

// FinishUpload receives the last piece, which may be empty, and makes the
// upload the blob want. When it returns nil the blob is durable and its digest
// was verified over the bytes received. After ErrDigestMismatch the upload is
// gone; after other errors it can be resumed.
func (r *Registry) FinishUpload(ctx context.Context, actor access.Actor, repo, id string, c Chunk, want digest.Digest) (ocispec.Descriptor, error) {
	if err := checkDigest(want); err != nil {
		return ocispec.Descriptor{}, err
	}
	s, err := r.session(ctx, actor, repo, id)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	s.mu.Lock()
	if s.offset == 0 && s.writer == nil && s.alg != want.Algorithm() {
		// Nothing has come yet: hash once, with the right algorithm.
		s.alg, s.hash = want.Algorithm(), attest.NewPieceHash(want.Algorithm())
	}
	s.mu.Unlock()
	owner, err := r.take(ctx, s, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := r.receive(ctx, s, owner, c); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.owner == owner && !s.gone {
			if e := r.saveCheckpoint(context.WithoutCancel(ctx), s, false); e != nil {
				r.log.Warn("upload will not survive a restart", "upload", s.id, "error", e)
			}
		}
		return ocispec.Descriptor{}, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != owner || s.gone {
		return ocispec.Descriptor{}, errFenced
	}
	if s.writer == nil { // an empty blob
		if s.writer, err = r.blobs.Create(ctx, 0); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	hash := s.hashed()
	if s.alg != want.Algorithm() {
		// The algorithm was not announced: the bytes are read once more.
		hash = attest.NewPieceHash(want.Algorithm())
		if _, err := io.CopyBuffer(hash, io.NewSectionReader(s.writer, 0, s.offset), make([]byte, uploadBuffer)); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if got := hash.Digest(); got != want {
		r.drop(s)
		return ocispec.Descriptor{}, fmt.Errorf("%w: %d bytes with digest %s, not %s", ErrDigestMismatch, s.offset, got, want)
	}
	r.lookAhead(want, s.writer, s.offset)
	bytes := blobRow{Key: s.writer.Key(), Size: s.offset}
	if err := s.writer.Commit(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("making blob %s durable: %w", want, err)
	}
	row := ""
	if s.hasRow {
		row = s.id
	}
	used, err := r.commitBlob(context.WithoutCancel(ctx), actor, repo, want, bytes, hash.States(), row)
	// Its bytes are sealed, so the session cannot go on either way.
	s.gone, s.hasRow = true, s.hasRow && err != nil
	r.forgetSession(s)
	if err != nil {
		// Whether the row was written is not known, unless the disk was full;
		// bytes that no row names are collected.
		if errors.Is(err, ErrNoSpace) {
			r.removeBlob(bytes.Key)
		}
		return ocispec.Descriptor{}, err
	}
	// From here on the blob is stored.
	if !used {
		r.removeDuplicate(bytes.Key, bytes.Size)
	}
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: want, Size: bytes.Size}, nil
}

// CancelUpload drops an upload and its bytes.
func (r *Registry) CancelUpload(ctx context.Context, actor access.Actor, repo, id string) error {
	s, err := r.session(ctx, actor, repo, id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return fmt.Errorf("%w: %s", ErrUploadUnknown, id)
	}
	r.drop(s)
	return nil
}

// drop ends a session and removes its bytes. The session's lock is held.
func (r *Registry) drop(s *session) {
	s.gone = true
	r.abandon(s)
	if s.writer != nil {
		s.writer.Close()
		r.removeBlob(s.writer.Key())
	}
	r.forgetSession(s)
}

func (r *Registry) forgetSession(s *session) {
	r.uploads.mu.Lock()
	r.uploads.remove(s)
	r.uploads.mu.Unlock()
	if !s.hasRow {
		return
	}
	err := r.submit(context.Background(), func(tx *txn) error {
		return dropUploadRow(tx, s.id)
	})
	if err != nil {
		r.log.Warn("the row of an upload that has ended is left", "upload", s.id, "error", err)
	}
}

// dropUploadRow removes what a crash would have left of a session.
func dropUploadRow(tx *txn, id string) error {
	tx.delete(key("upload", id))
	return dropStates(tx, "uploadstates", id)
}

// UploadToken names a place in an upload in a way that only this server can
// make: <id>.<offset>.<authenticator>. A client that sends a piece to the
// location with the token says with it where it believes the upload stands.
func (r *Registry) UploadToken(id string, offset int64) string {
	text := id + "." + strconv.FormatInt(offset, 10)
	return text + "." + r.authenticator(text)
}

// ParseUploadToken is the reverse of [Registry.UploadToken].
func (r *Registry) ParseUploadToken(token string) (id string, offset int64, err error) {
	text, mac, ok := cutLast(token, ".")
	if !ok || !hmac.Equal([]byte(mac), []byte(r.authenticator(text))) {
		return "", 0, fmt.Errorf("%w: %.200q is no location of this server", ErrUploadUnknown, token)
	}
	id, number, _ := strings.Cut(text, ".")
	offset, err = strconv.ParseInt(number, 10, 64)
	return id, offset, err
}

func (r *Registry) authenticator(text string) string {
	m := hmac.New(sha256.New, r.identity.uploads)
	m.Write([]byte(text))
	return hex.EncodeToString(m.Sum(nil)[:16])
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
