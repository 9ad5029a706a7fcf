package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/assay-dev/assay/registry"
)

func (s *server) getManifest(c *call) error {
	if c.Method == http.MethodHead {
		d, err := s.Registry.StatManifest(c.Context(), c.actor, c.repo, c.ref)
		if err != nil {
			return err
		}
		h := c.w.Header()
		h.Set("Content-Type", d.MediaType)
		h.Set("Content-Length", strconv.FormatInt(d.Size, 10))
		h.Set("Accept-Ranges", "bytes")
		s.describe(h, d.Digest, strings.Contains(c.ref, ":"))
		c.answer(http.StatusOK)
		return nil
	}
	m, err := s.Registry.Manifest(c.Context(), c.actor, c.repo, c.ref)
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Content-Type", m.Descriptor.MediaType)
	s.describe(h, m.Descriptor.Digest, strings.Contains(c.ref, ":"))
	// Some clients ask for "Range: bytes=0-" of a manifest too.
	http.ServeContent(&counted{c.w, &c.seen}, c.Request, "", time.Time{}, bytes.NewReader(m.Body))
	return nil
}

// describe sets what content of a digest has in common. What a digest names
// never changes; what a tag names has to be asked for each time.
func (s *server) describe(h http.Header, d digest.Digest, immutable bool) {
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Etag", `"`+string(d)+`"`)
	if immutable {
		h.Set("Cache-Control", "private, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "private, no-cache")
	}
}

func (s *server) putManifest(c *call) error {
	if c.ContentLength > registry.MaxManifest {
		return fmt.Errorf("%w: %d bytes, at most %d are accepted", registry.ErrManifestTooLarge, c.ContentLength, registry.MaxManifest)
	}
	body, err := io.ReadAll(io.LimitReader(s.body(c), registry.MaxManifest+1))
	if err != nil {
		return fmt.Errorf("%w: the body broke off: %w", registry.ErrManifestInvalid, err)
	}
	q := c.URL.Query()
	r, err := s.Registry.PutManifest(c.Context(), c.actor, c.repo, registry.PutManifest{
		Reference: c.ref,
		// "?tag=…: one or more tags to be created with the manifest, all or
		// none" (distribution-spec main, end-7b).
		Tags:      q["tag"],
		MediaType: c.Header.Get("Content-Type"),
		Body:      body,
		Reason:    c.Header.Get("Assay-Reason"),
	})
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.repo+"/manifests/"+string(r.Descriptor.Digest))
	h.Set("Docker-Content-Digest", string(r.Descriptor.Digest))
	if r.Subject != "" {
		// "The registry MUST include the OCI-Subject header" (Pushing
		// Manifests with Subject).
		h.Set("OCI-Subject", string(r.Subject))
	}
	for _, t := range q["tag"] {
		h.Add("OCI-Tag", t)
	}
	if r.Version > 0 {
		h.Set("Assay-Version", strconv.Itoa(r.Version))
	}
	c.answer(http.StatusCreated)
	return nil
}

func (s *server) deleteManifest(c *call) error {
	var err error
	if strings.Contains(c.ref, ":") {
		err = s.Registry.DeleteManifest(c.Context(), c.actor, c.repo, digest.Digest(c.ref))
	} else {
		err = s.Registry.DeleteTag(c.Context(), c.actor, c.repo, c.ref)
	}
	if err == nil {
		c.answer(http.StatusAccepted)
	}
	return err
}

// page reads n and last of a list. Without n all is sent: n is negative.
func page(q url.Values) (n int, last string, err error) {
	n = -1
	if q.Has("n") {
		if n, err = strconv.Atoi(q.Get("n")); err != nil || n < 0 {
			return 0, "", fmt.Errorf("%w: n=%q is no number", registry.ErrNameInvalid, q.Get("n"))
		}
	}
	return n, q.Get("last"), nil
}

// link points at the next page.
func link(h http.Header, path string, n int, last string) {
	q := url.Values{"n": {strconv.Itoa(n)}, "last": {last}}
	h.Set("Link", "<"+path+"?"+q.Encode()+`>; rel="next"`)
}

func (s *server) tags(c *call) error {
	n, last, err := page(c.URL.Query())
	if err != nil {
		return err
	}
	tags, more, err := s.Registry.Tags(c.Context(), c.actor, c.repo, last, n)
	if err != nil {
		return err
	}
	if tags == nil {
		tags = []string{}
	}
	// "When n is zero, this endpoint MUST return an empty list, and MUST NOT
	// include a Link header" (Listing Tags).
	if more && n > 0 {
		link(c.w.Header(), c.URL.Path, n, tags[len(tags)-1])
	}
	return writeJSON(c, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{c.repo, tags})
}

func (s *server) catalog(c *call) error {
	n, last, err := page(c.URL.Query())
	if err != nil {
		return err
	}
	repos, more, err := s.Registry.Repositories(c.Context(), c.actor, last, n)
	if err != nil {
		return err
	}
	if repos == nil {
		repos = []string{}
	}
	if more && n > 0 {
		link(c.w.Header(), c.URL.Path, n, repos[len(repos)-1])
	}
	return writeJSON(c, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{repos})
}

// maxReferrersPage is the size of a list of referrers above which it is cut:
// clients such as go-containerregistry do not ask for a second page, so what
// they must not miss has to be on the first.
const maxReferrersPage = 32 << 20

func (s *server) referrers(c *call) error {
	q := c.URL.Query()
	filter := q.Get("artifactType")
	// The descriptors are stored as they are sent.
	body := bytes.NewBufferString(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[`)
	empty := body.Len()
	var before []byte
	err := s.Registry.EachReferrer(c.Context(), c.actor, c.repo, digest.Digest(c.ref), filter, digest.Digest(q.Get("last")), func(raw []byte) (bool, error) {
		if body.Len() > empty {
			if body.Len()+len(raw) > maxReferrersPage {
				var d ocispec.Descriptor
				if err := json.Unmarshal(before, &d); err != nil {
					return false, err
				}
				q.Set("last", string(d.Digest))
				c.w.Header().Set("Link", "<"+c.URL.Path+"?"+q.Encode()+`>; rel="next"`)
				return false, nil
			}
			body.WriteByte(',')
		}
		before = append(before[:0], raw...)
		body.Write(raw)
		return true, nil
	})
	if err != nil {
		return err
	}
	body.WriteString("]}")
	if filter != "" {
		c.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeBody(c, ocispec.MediaTypeImageIndex, body.Bytes())
}

func writeJSON(c *call, mediaType string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeBody(c, mediaType, raw)
}

func writeBody(c *call, mediaType string, raw []byte) error {
	// No charset: clients compare the type to the letter.
	c.w.Header().Set("Content-Type", mediaType)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	n, err := c.w.Write(raw)
	c.seen.Sent += int64(n)
	return sent(err)
}
