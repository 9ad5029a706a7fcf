package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/assay-dev/assay/verify/attest"
)

// Hashing a file takes as long as sending it, where the network is fast. So a
// large file is sent while it is hashed: its bytes go into an upload session
// (PATCH), and the digest, which the session has to be closed with (PUT),
// follows them. If the registry turns out to have the file, the rest of it is
// not sent.

// resumable is the size from which a file is worth that, and worth remembering
// where its upload stands.
const resumable = attest.PieceSize

// A digesting is the digest of a file that is being hashed. Its methods may be
// called concurrently.
type digesting struct {
	done   chan struct{}
	digest digest.Digest // set before done is closed
}

// known is the digest of a file that was hashed before.
func known(d digest.Digest) *digesting {
	k := &digesting{make(chan struct{}), d}
	close(k.done)
	return k
}

// now returns the digest, or "" while it is being computed.
func (d *digesting) now() digest.Digest {
	select {
	case <-d.done:
		return d.digest
	default:
		return ""
	}
}

// wait returns the digest when it is computed.
func (d *digesting) wait(ctx context.Context) (digest.Digest, error) {
	select {
	case <-d.done:
		return d.digest, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// An upload is a file being sent as a blob. It belongs to one goroutine.
type upload struct {
	*link
	file   layerFile
	digest *digesting
	bar    *progress

	location *url.URL // nil before the session is begun
	offset   int64    // what the registry has
	resumed  bool     // an earlier run began the session
	shown    int64    // of the bar
	sent     int64    // bytes that were sent, more than once perhaps
	note     *os.File // remembers the location; nil if it cannot be remembered
}

// push sends a file as a blob, unless the registry has it, and returns how many
// bytes went over the link.
func (l *link) push(ctx context.Context, file *layerFile, bar *progress) (sent int64, present bool, err error) {
	if file.desc.Digest == "" {
		return l.pushUnhashed(ctx, file, bar)
	}
	if present, err = l.repo.Blobs().Exists(ctx, file.desc); err != nil {
		return 0, false, err
	}
	if present {
		bar.Add(file.desc.Size)
		return 0, true, nil
	}
	u := &upload{link: l, file: *file, digest: known(file.desc.Digest), bar: bar}
	err = u.run(ctx)
	return u.sent, false, err
}

// pushUnhashed sends a file while it is hashed, and sets its digest.
func (l *link) pushUnhashed(ctx context.Context, file *layerFile, bar *progress) (sent int64, present bool, err error) {
	errPresent := errors.New("the registry has it")
	d := &digesting{done: make(chan struct{})}
	u := &upload{link: l, file: *file, digest: d, bar: bar}
	group, both := errgroup.WithContext(ctx)
	sending, stop := context.WithCancelCause(both)
	defer stop(nil)
	group.Go(func() error {
		if err := file.hash(both, nil); err != nil {
			return err
		}
		d.digest = file.desc.Digest
		close(d.done)
		if sending.Err() != nil {
			return nil
		}
		// If it cannot be told, the sending will show why.
		if ok, err := l.repo.Blobs().Exists(both, file.desc); err == nil && ok {
			stop(errPresent)
		}
		return nil
	})
	group.Go(func() error {
		defer stop(nil) // there is nothing left to save
		err := u.run(sending)
		if err != nil && context.Cause(sending) == errPresent {
			present = true
			u.cancel(both)
			u.show(u.file.desc.Size)
			return nil
		}
		return err
	})
	err = group.Wait()
	return u.sent, present, err
}

// run sends the file until the registry has it.
func (u *upload) run(ctx context.Context) error {
	ctx = auth.AppendRepositoryScope(ctx, u.repo.Reference, auth.ActionPull, auth.ActionPush)
	u.recall(ctx)
	err := u.persist(ctx)
	if u.resumed && mismatch(err) {
		// What an earlier run sent was something else.
		u.restart()
		err = u.persist(ctx)
	}
	var answer *statusError
	u.forget(err == nil || errors.As(err, &answer) && final(err))
	if mismatch(err) {
		return remedy(err, "the file was not the same when it was hashed and when it was sent: push it again when nothing writes to it")
	}
	return err
}

func (u *upload) persist(ctx context.Context) error {
	return persist(ctx, func() (int64, error) {
		before := u.offset
		err := u.try(ctx)
		if err != nil && u.location != nil && !final(err) && ctx.Err() == nil {
			// What arrived is the registry's to say.
			if e := u.ask(ctx); e != nil {
				u.restart()
			}
		}
		return u.offset - before, err
	})
}

// mismatch reports whether a registry found that bytes do not have their digest.
func mismatch(err error) bool {
	var answer *statusError
	return errors.As(err, &answer) && answer.code == "digest_invalid"
}

// try begins the upload, if that was not done, sends all that is missing, and
// closes it.
func (u *upload) try(ctx context.Context) error {
	if u.location == nil {
		start := *u.base
		start.Path += "uploads/"
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, start.String(), nil)
		if err != nil {
			return err
		}
		resp, err := u.do(req, http.StatusAccepted)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if err := u.place(resp); err != nil {
			return err
		}
		u.remember()
	}
	if u.digest.now() == "" && u.offset < u.file.desc.Size {
		if err := u.send(ctx, http.MethodPatch, u.location, http.StatusAccepted); err != nil {
			return err
		}
	}
	d, err := u.digest.wait(ctx)
	if err != nil {
		return err
	}
	to := *u.location
	q := to.Query()
	q.Set("digest", string(d))
	to.RawQuery = q.Encode()
	return u.send(ctx, http.MethodPut, &to, http.StatusCreated)
}

// send sends what is missing of the file, if anything is.
func (u *upload) send(ctx context.Context, method string, to *url.URL, want int) error {
	f, err := os.Open(u.file.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(u.offset, io.SeekStart); err != nil {
		return err
	}
	// The transport must see the file itself: it sends it by sendfile. How far
	// that is, is the file's position.
	req, err := http.NewRequestWithContext(ctx, method, to.String(), io.NopCloser(f))
	if err != nil {
		return err
	}
	size := u.file.desc.Size
	req.ContentLength = size - u.offset
	if req.ContentLength == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if u.offset > 0 && req.ContentLength > 0 {
		req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", u.offset, size-1))
	}
	stop := u.watch(f)
	resp, err := u.do(req, want)
	u.sent += stop() - u.offset
	if err != nil {
		return err
	}
	resp.Body.Close()
	u.show(size)
	if want == http.StatusAccepted {
		u.offset = size
		return u.place(resp)
	}
	return nil
}

// watch shows how far the file was read, until stop is called, which returns
// that.
func (u *upload) watch(f *os.File) (stop func() int64) {
	position := func() int64 {
		at := u.offset
		raw, err := f.SyscallConn()
		if err == nil {
			raw.Control(func(fd uintptr) {
				if n, err := unix.Seek(int(fd), 0, io.SeekCurrent); err == nil {
					at = max(at, n)
				}
			})
		}
		return at
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(100 * time.Millisecond):
				u.show(position())
			}
		}
	}()
	return func() int64 {
		close(end)
		<-ended
		return position()
	}
}

// show moves the bar to a place, which may be before where it stood.
func (u *upload) show(to int64) {
	u.bar.Add(to - u.shown)
	u.shown = to
}

// ask learns where the upload stands.
func (u *upload) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.location.String(), nil)
	if err != nil {
		return err
	}
	resp, err := u.do(req, http.StatusNoContent)
	if err != nil {
		return err
	}
	resp.Body.Close()
	// "Range: 0-<end>"; nothing and one byte look alike, so one is sent again.
	_, end, ok := strings.Cut(resp.Header.Get("Range"), "-")
	last, err := strconv.ParseInt(end, 10, 64)
	if !ok || err != nil || last < 0 || last >= max(u.file.desc.Size, 1) {
		return fmt.Errorf("the upload stands at %q, of %d bytes", resp.Header.Get("Range"), u.file.desc.Size)
	}
	u.offset = 0
	if last > 0 {
		u.offset = last + 1
	}
	u.show(u.offset)
	return u.place(resp)
}

// place takes over where the next request of the upload goes. That must be the
// same registry: the request carries our credentials.
func (u *upload) place(resp *http.Response) error {
	to, err := resp.Location()
	if err != nil {
		return err
	}
	if to.Hostname() != u.base.Hostname() || to.Scheme != u.base.Scheme {
		return fmt.Errorf("the registry sends the upload to another place, %s://%s", to.Scheme, to.Host)
	}
	u.location = to
	return nil
}

func (u *upload) restart() {
	u.location, u.offset, u.resumed = nil, 0, false
	u.show(0)
}

// cancel drops the session, which otherwise keeps what was sent until it
// expires; so that it fails does no harm.
func (u *upload) cancel(ctx context.Context) {
	u.forget(true)
	if u.location == nil {
		return
	}
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, u.location.String(), nil)
	if err != nil {
		return
	}
	if resp, err := u.do(req, http.StatusNoContent); err == nil {
		resp.Body.Close()
	}
}

// An uploadNote is what a file in the user's cache says of an upload.
type uploadNote struct {
	Location string `json:"location"`
}

// recall finds an upload of the same file to the same place that was broken
// off. Its note is locked for as long as this process sends, so that two that
// push the same file do not send into one session. Without a note an upload
// begins anew.
func (u *upload) recall(ctx context.Context) {
	if u.file.desc.Size < resumable {
		return
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return
	}
	path, err := filepath.Abs(u.file.path)
	if err != nil {
		return
	}
	dir = filepath.Join(dir, "assay", "uploads")
	if os.MkdirAll(dir, 0o700) != nil {
		return
	}
	// What is pushed is not known by its digest yet, but by where it lies. If
	// that is something else by now, the digest tells in the end.
	name := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%d", u.base, path, u.file.desc.Size, u.file.modified.UnixNano()))
	f, err := os.OpenFile(filepath.Join(dir, hex.EncodeToString(name[:16])+".json"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return
	}
	u.note = f
	var n uploadNote
	if json.NewDecoder(io.LimitReader(f, 64<<10)).Decode(&n) != nil {
		return
	}
	to, err := url.Parse(n.Location)
	if err != nil || to.Host != u.base.Host || to.Scheme != u.base.Scheme {
		return
	}
	u.location, u.resumed = to, true
	if u.ask(ctx) != nil {
		u.restart()
	}
}

// remember writes the note. One that is not written is one that is not found.
func (u *upload) remember() {
	if u.note == nil {
		return
	}
	raw, err := json.Marshal(uploadNote{u.location.String()})
	if cmp.Or(err, u.note.Truncate(0)) == nil {
		u.note.WriteAt(raw, 0)
	}
}

// forget lets go of the note, and removes it if the upload is over.
func (u *upload) forget(over bool) {
	if u.note == nil {
		return
	}
	if over {
		os.Remove(u.note.Name())
	}
	u.note.Close()
	u.note = nil
}
