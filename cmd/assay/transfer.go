package main

import (
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

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/assay-dev/assay/verify/attest"
)

// How large blobs are sent and fetched. A link that breaks costs what was
// under way, and a client that was killed goes on where it stood: an upload at
// the offset the registry has, a download with the pieces it lacks.

const (
	// resumable is the size from which the place of an upload is remembered.
	resumable = attest.PieceSize

	// patience is how often in a row a transfer is tried again that made no
	// progress, and pause how long the first wait is; each next is twice as long.
	patience = 5
	pause    = 200 * time.Millisecond
)

// A link is a repository to send blobs to and fetch them from.
type link struct {
	repo *remote.Repository
	base *url.URL // /v2/<name>/blobs/
}

func newLink(repo *remote.Repository) *link {
	scheme := "https"
	if repo.PlainHTTP {
		scheme = "http"
	}
	return &link{repo, &url.URL{Scheme: scheme, Host: repo.Reference.Host(), Path: "/v2/" + repo.Reference.Repository + "/blobs/"}}
}

// A statusError is an answer that was not the one hoped for.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string { return e.message }

// do sends a request and returns an answer with one of the wanted statuses.
func (l *link) do(req *http.Request, want ...int) (*http.Response, error) {
	resp, err := l.repo.Client.Do(req)
	if err != nil {
		return nil, err
	}
	for _, s := range want {
		if resp.StatusCode == s {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	message := fmt.Sprintf("%s %s: %s", req.Method, req.URL.Path, resp.Status)
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &answer) == nil && len(answer.Errors) > 0 {
		message += fmt.Sprintf(": %s: %s", strings.ToLower(answer.Errors[0].Code), answer.Errors[0].Message)
	}
	return nil, &statusError{resp.StatusCode, message}
}

// final reports whether trying again cannot help.
func final(err error) bool {
	var s *statusError
	return errors.As(err, &s) && s.status < 500 && s.status != http.StatusRequestTimeout && s.status != http.StatusTooManyRequests ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// persist calls try until it succeeds, fails for good, or has failed without
// progress for too long. try returns how much it got done.
func persist(ctx context.Context, try func() (progress int64, err error)) error {
	for failed := 0; ; {
		n, err := try()
		if err == nil || final(err) || ctx.Err() != nil {
			return err
		}
		if failed++; n > 0 {
			failed = 1
		}
		if failed > patience {
			return err
		}
		select {
		case <-time.After(pause << (failed - 1)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// An upload is a blob being sent.
type upload struct {
	*link
	desc ocispec.Descriptor
	path string // of the file
	bar  *progress

	location *url.URL // nil before the session is begun
	offset   int64    // what the registry has
	shown    int64    // of the bar
	sent     int64    // bytes that were sent, more than once perhaps
}

// push sends a file as a blob, and returns how many bytes went over the link.
func (l *link) push(ctx context.Context, desc ocispec.Descriptor, path string, bar *progress) (sent int64, err error) {
	ctx = auth.AppendRepositoryScope(ctx, l.repo.Reference, auth.ActionPull, auth.ActionPush)
	u := &upload{link: l, desc: desc, path: path, bar: bar}
	u.recall(ctx)
	err = persist(ctx, func() (int64, error) {
		before := u.offset
		err := u.try(ctx)
		if err != nil && u.location != nil && !final(err) {
			// What arrived is the registry's to say.
			if e := u.ask(ctx); e != nil {
				u.restart()
			}
		}
		return u.offset - before, err
	})
	if err == nil || final(err) {
		u.forget()
	}
	return u.sent, err
}

// try begins the upload, if that was not done, and sends all that is missing.
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
	f, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(u.offset, io.SeekStart); err != nil {
		return err
	}
	to := *u.location
	q := to.Query()
	q.Set("digest", string(u.desc.Digest))
	to.RawQuery = q.Encode()
	// The transport must see the file itself: it sends it by sendfile. How far
	// that is, is the file's position.
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), io.NopCloser(f))
	if err != nil {
		return err
	}
	req.ContentLength = u.desc.Size - u.offset
	if req.ContentLength == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if u.offset > 0 && req.ContentLength > 0 {
		req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", u.offset, u.desc.Size-1))
	}
	stop := u.watch(f)
	resp, err := u.do(req, http.StatusCreated)
	u.sent += stop() - u.offset
	if err != nil {
		return err
	}
	resp.Body.Close()
	u.show(u.desc.Size)
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
	if !ok || err != nil || last < 0 || last >= u.desc.Size {
		return fmt.Errorf("the upload stands at %q, of %d bytes", resp.Header.Get("Range"), u.desc.Size)
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
	u.location, u.offset = nil, 0
	u.show(0)
}

// note is the file that remembers the upload's place, "" if there is none.
func (u *upload) note() string {
	dir, err := os.UserCacheDir()
	if err != nil || u.desc.Size < resumable {
		return ""
	}
	name := sha256.Sum256([]byte(u.base.String() + string(u.desc.Digest)))
	return filepath.Join(dir, "assay", "uploads", hex.EncodeToString(name[:16])+".json")
}

// An uploadNote is what that file holds.
type uploadNote struct {
	Location string `json:"location"`
}

// remember is a convenience: an upload whose place is not known begins anew.
func (u *upload) remember() {
	file := u.note()
	if file == "" || os.MkdirAll(filepath.Dir(file), 0o700) != nil {
		return
	}
	raw, err := json.Marshal(uploadNote{u.location.String()})
	if err == nil {
		os.WriteFile(file, raw, 0o600)
	}
}

// recall finds an upload of the same bytes to the same place that was broken
// off.
func (u *upload) recall(ctx context.Context) {
	file := u.note()
	if file == "" {
		return
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return
	}
	var n uploadNote
	if json.Unmarshal(raw, &n) != nil {
		return
	}
	to, err := url.Parse(n.Location)
	if err != nil || to.Host != u.base.Host || to.Scheme != u.base.Scheme {
		return
	}
	u.location = to
	if u.ask(ctx) != nil {
		u.restart()
	}
}

func (u *upload) forget() {
	if file := u.note(); file != "" {
		os.Remove(file)
	}
}

// open asks for a blob from an offset on, n bytes of it. The answer has
// exactly those.
func (l *link) open(ctx context.Context, desc ocispec.Descriptor, offset, n int64) (io.ReadCloser, error) {
	from := *l.base
	from.Path += string(desc.Digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if offset > 0 || n < desc.Size {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
		want = http.StatusPartialContent
	}
	resp, err := l.do(req, want)
	var s *statusError
	if errors.As(err, &s) && s.status == http.StatusOK {
		return nil, errNoRanges
	}
	if err != nil {
		return nil, err
	}
	if resp.ContentLength >= 0 && resp.ContentLength != n {
		resp.Body.Close()
		return nil, fmt.Errorf("blob %s: %d bytes were asked for and %d are sent", desc.Digest, n, resp.ContentLength)
	}
	return resp.Body, nil
}

// errNoRanges says that a registry sends only whole blobs.
var errNoRanges = &statusError{http.StatusOK, "the registry does not send parts of a blob"}
