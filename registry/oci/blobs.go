package oci

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/store"
)

func (s *server) getBlob(c *call) error {
	d := digest.Digest(c.ref)
	b, err := s.Registry.OpenBlob(c.Context(), c.actor, c.repo, d)
	if err != nil {
		return err
	}
	defer b.Close()
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	s.describe(h, d, true)
	// net/http sends an *os.File with sendfile: it must get the file itself.
	var content io.ReadSeeker = b
	if f, ok := store.FileOf(b); ok {
		content = f
	}
	http.ServeContent(&counted{c.w, &c.seen}, c.Request, "", time.Time{}, content)
	return nil
}

// counted counts what is sent. It passes ReadFrom on, or sendfile would be lost.
type counted struct {
	http.ResponseWriter
	seen *Observation
}

// WriteHeader notes the status that http.ServeContent chose.
func (w *counted) WriteHeader(status int) {
	w.seen.Status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *counted) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.seen.Sent += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (w *counted) ReadFrom(src io.Reader) (n int64, err error) {
	n, err = io.Copy(w.ResponseWriter, src)
	w.seen.Sent += n
	return n, err
}

// body is the request's body, and counts what is read of it.
func (s *server) body(c *call) io.Reader { return &countedBody{c.Body, &c.received} }

type countedBody struct {
	io.Reader
	count *atomic.Int64
}

func (r *countedBody) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.count.Add(int64(n))
	return n, err
}

func (s *server) deleteBlob(c *call) error {
	err := s.Registry.DeleteBlob(c.Context(), c.actor, c.repo, digest.Digest(c.ref))
	if err == nil {
		c.answer(http.StatusAccepted)
	}
	return err
}

func (s *server) startUpload(c *call) error {
	q := c.URL.Query()
	if mount := q.Get("mount"); mount != "" {
		err := s.Registry.MountBlob(c.Context(), c.actor, c.repo, digest.Digest(mount), q.Get("from"))
		if err == nil {
			s.created(c, digest.Digest(mount))
			return nil
		}
		// "If a registry does not support cross-repository mounting or is
		// unable to mount the requested blob, it SHOULD return a 202"
		if !errors.Is(err, registry.ErrBlobUnknown) && !errors.Is(err, registry.ErrDigestInvalid) {
			return err
		}
	}
	want := digest.Digest(q.Get("digest"))
	start := registry.StartUpload{Algorithm: digest.Algorithm(q.Get("digest-algorithm"))}
	if want != "" {
		if err := want.Validate(); err != nil {
			return fmt.Errorf("%w: %q", registry.ErrDigestInvalid, want)
		}
		start.Algorithm = want.Algorithm()
	}
	u, err := s.Registry.StartUpload(c.Context(), c.actor, c.repo, start)
	if err != nil {
		return err
	}
	if want == "" {
		s.progress(c, u)
		c.answer(http.StatusAccepted)
		return nil
	}
	// A single POST with the whole blob.
	_, err = s.Registry.FinishUpload(c.Context(), c.actor, c.repo, u.ID, registry.Chunk{At: 0, Body: s.body(c), Size: c.ContentLength}, want)
	if err != nil {
		if e := s.Registry.CancelUpload(c.Context(), c.actor, c.repo, u.ID); e != nil && !errors.Is(e, registry.ErrUploadUnknown) {
			s.Log.Warn("an upload that failed is left", "upload", u.ID, "error", e)
		}
		return err
	}
	s.created(c, want)
	return nil
}

// progress says where an upload stands. The location carries the offset,
// authenticated: a client that sends a piece to it says where it believes the
// upload stands, so a piece that is sent again is not appended twice.
func (s *server) progress(c *call, u registry.Upload) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.repo+"/blobs/uploads/"+s.Registry.UploadToken(u.ID, u.Offset))
	h.Set("Docker-Upload-Uuid", u.ID)
	h.Set("Range", "0-"+strconv.FormatInt(max(u.Offset-1, 0), 10))
}

func (s *server) created(c *call, d digest.Digest) {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.repo+"/blobs/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	c.answer(http.StatusCreated)
}

func (s *server) statUpload(c *call) error {
	id, _, err := s.Registry.ParseUploadToken(c.ref)
	if err != nil {
		return err
	}
	u, err := s.Registry.StatUpload(c.Context(), c.actor, c.repo, id)
	if err != nil {
		return err
	}
	s.progress(c, u)
	c.answer(http.StatusNoContent)
	return nil
}

func (s *server) cancelUpload(c *call) error {
	id, _, err := s.Registry.ParseUploadToken(c.ref)
	if err != nil {
		return err
	}
	if err := s.Registry.CancelUpload(c.Context(), c.actor, c.repo, id); err != nil {
		return err
	}
	c.answer(http.StatusNoContent)
	return nil
}

// contentRangeRE is the specification's form, and the one of RFC 9110 that
// other registries' documentation made people write.
var contentRangeRE = regexp.MustCompile(`^(?:bytes[ =])?([0-9]+)-([0-9]+)(?:/(?:[0-9]+|\*))?$`)

// chunk reads what a PATCH or PUT brings.
func (s *server) chunk(c *call) (id string, ch registry.Chunk, err error) {
	id, offset, err := s.Registry.ParseUploadToken(c.ref)
	if err != nil {
		return "", ch, err
	}
	ch = registry.Chunk{At: offset, Rewind: true, Body: s.body(c), Size: c.ContentLength}
	if r := strings.TrimSpace(c.Header.Get("Content-Range")); r != "" {
		m := contentRangeRE.FindStringSubmatch(r)
		if m == nil {
			return "", ch, fmt.Errorf("%w: Content-Range %.100q: write FIRST-LAST", registry.ErrRangeInvalid, r)
		}
		first, e1 := strconv.ParseInt(m[1], 10, 64)
		last, e2 := strconv.ParseInt(m[2], 10, 64)
		if e1 != nil || e2 != nil || last < first-1 || ch.Size >= 0 && ch.Size != last-first+1 {
			return "", ch, fmt.Errorf("%w: Content-Range %s does not fit a body of %d bytes", registry.ErrRangeInvalid, r, ch.Size)
		}
		// Range and location say the same where a piece is sent again; a piece
		// that leaves the location's order is a mistake.
		ch.At, ch.Rewind, ch.Size = first, first == offset, last-first+1
	}
	return id, ch, nil
}

func (s *server) patchUpload(c *call) error {
	id, ch, err := s.chunk(c)
	if err != nil {
		return err
	}
	u, err := s.Registry.AppendUpload(c.Context(), c.actor, c.repo, id, ch)
	if err != nil {
		return err
	}
	s.progress(c, u)
	c.answer(http.StatusAccepted)
	return nil
}

func (s *server) putUpload(c *call) error {
	id, ch, err := s.chunk(c)
	if err != nil {
		return err
	}
	want := digest.Digest(c.URL.Query().Get("digest"))
	if c.ContentLength == 0 && c.Header.Get("Content-Range") == "" {
		// Closing without a last piece: the client may use an older location.
		ch.At = -1
	}
	d, err := s.Registry.FinishUpload(c.Context(), c.actor, c.repo, id, ch, want)
	if err != nil {
		return err
	}
	s.created(c, d.Digest)
	return nil
}
