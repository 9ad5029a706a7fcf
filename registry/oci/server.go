// Package oci speaks the OCI distribution specification (v1.1, and what is
// new on its main branch) over HTTP for a [registry.Registry].
//
// Handlers return errors; errors.go is the one place that turns them into
// status codes. Bodies have progress deadlines instead of limits on a whole
// request: an upload may take a day, as long as bytes keep coming.
package oci

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// Options configure Handler. Registry and Authenticate are needed.
type Options struct {
	Registry *registry.Registry

	// Authenticate says who is asking.
	Authenticate func(*http.Request) (access.Actor, error)

	// Log takes one line a request; nil discards them.
	Log *slog.Logger

	// Observe is told of each request when it is over; nil tells nobody.
	Observe func(Observation)

	// Stall is how long a client may send or take nothing; 0 is a minute.
	Stall time.Duration
}

// An Observation is what happened to one request.
type Observation struct {
	Route, Method  string // of the route table; "" if there is no such route
	Status         int
	Took           time.Duration
	Received, Sent int64 // bytes of bodies
}

type server struct {
	Options
}

// Handler answers requests below /v2/.
func Handler(opt Options) http.Handler {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Stall == 0 {
		opt.Stall = time.Minute
	}
	return &server{opt}
}

// A call is one request, taken apart.
type call struct {
	*http.Request
	w     http.ResponseWriter
	actor access.Actor
	repo  string
	ref   string // what follows the route's last word: a tag, a digest, an upload

	seen     Observation
	received atomic.Int64 // what reads a body may outlive its request
}

// route finds the handler for a path. Repository names have slashes in them,
// so paths are read from the right: the table is the specification's.
//
//	end-1   GET            /v2/
//	end-2   GET HEAD       /v2/<name>/blobs/<digest>
//	end-3   GET HEAD       /v2/<name>/manifests/<reference>
//	end-4   POST           /v2/<name>/blobs/uploads/         (and end-11, mount)
//	end-5   PATCH          /v2/<name>/blobs/uploads/<session>
//	end-6   PUT            /v2/<name>/blobs/uploads/<session>?digest=
//	end-7   PUT            /v2/<name>/manifests/<reference>
//	end-8   GET            /v2/<name>/tags/list
//	end-9   DELETE         /v2/<name>/manifests/<reference>
//	end-10  DELETE         /v2/<name>/blobs/<digest>
//	end-12  GET            /v2/<name>/referrers/<digest>
//	end-13  GET            /v2/<name>/blobs/uploads/<session>
//	end-14  DELETE         /v2/<name>/blobs/uploads/<session>
//	        GET            /v2/_catalog
func (s *server) route(method, path string) (h func(*call) error, pattern, repo, ref string) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	switch {
	case !ok:
		return nil, "", "", ""
	case rest == "":
		return pick(method, methods{"GET": s.ping, "HEAD": s.ping}), "/v2/", "", ""
	case rest == "_catalog":
		return pick(method, methods{"GET": s.catalog}), "/v2/_catalog", "", ""
	}
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return pick(method, methods{"GET": s.tags}), "/v2/<name>/tags/list", repo, ""
	}
	if repo, ok := strings.CutSuffix(rest, "/blobs/uploads/"); ok {
		return pick(method, methods{"POST": s.startUpload}), "/v2/<name>/blobs/uploads/", repo, ""
	}
	if repo, ok := strings.CutSuffix(rest, "/blobs/uploads"); ok {
		return pick(method, methods{"POST": s.startUpload}), "/v2/<name>/blobs/uploads/", repo, ""
	}
	dir, ref, ok := cutLast(rest)
	if !ok || ref == "" {
		return nil, "", "", ""
	}
	for suffix, m := range map[string]methods{
		"/blobs/uploads": {"GET": s.statUpload, "PATCH": s.patchUpload, "PUT": s.putUpload, "DELETE": s.cancelUpload},
		"/blobs":         {"GET": s.getBlob, "HEAD": s.getBlob, "DELETE": s.deleteBlob},
		"/manifests":     {"GET": s.getManifest, "HEAD": s.getManifest, "PUT": s.putManifest, "DELETE": s.deleteManifest},
		"/referrers":     {"GET": s.referrers},
	} {
		if repo, ok := strings.CutSuffix(dir, suffix); ok {
			return pick(method, m), "/v2/<name>" + suffix + "/<reference>", repo, ref
		}
	}
	return nil, "", "", ""
}

type methods map[string]func(*call) error

func pick(method string, m methods) func(*call) error {
	if h, ok := m[method]; ok {
		return h
	}
	return func(*call) error { return errMethod }
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := requestID(r)
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	h, pattern, repo, ref := s.route(r.Method, r.URL.Path)
	c := &call{Request: r, w: w, repo: repo, ref: ref}
	c.seen = Observation{Route: pattern, Method: r.Method}
	err := errRoute
	// Who is asking is known, and refused, before the body is read and before
	// anything is told of what there is.
	if c.actor, err = s.Authenticate(r); err == nil {
		c.actor.RequestID = id
		if c.actor.ID == "" {
			err = fmt.Errorf("%w: log in", access.ErrUnauthenticated)
		} else if h == nil {
			err = errRoute
		} else {
			err = h(c)
		}
	}
	if err != nil {
		c.seen.Status = s.writeError(w, r, err)
	} else if c.seen.Status == 0 {
		c.seen.Status = http.StatusOK
	}
	c.seen.Took, c.seen.Received = time.Since(start), c.received.Load()
	if s.Observe != nil {
		s.Observe(c.seen)
	}
	level := slog.LevelDebug
	switch {
	case c.seen.Status >= 500:
		level = slog.LevelError
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		level = slog.LevelInfo // what changes something
	}
	s.Log.Log(r.Context(), level, "oci", "request", id, "actor", c.actor.ID, "method", r.Method, "route", pattern, "repository", repo,
		"reference", ref, "status", c.seen.Status, "received", c.seen.Received, "sent", c.seen.Sent,
		"took", c.seen.Took.Round(time.Microsecond), "error", err)
}

// answer sends the status of a success without a body.
func (c *call) answer(status int) {
	c.seen.Status = status
	c.w.WriteHeader(status)
}

// requestID takes over the client's id if it is one that can be logged.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id != "" && len(id) <= 64 && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.") == "" {
		return id
	}
	var raw [8]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

func (s *server) ping(c *call) error {
	c.w.Header().Set("Content-Type", "application/json")
	_, err := c.w.Write([]byte("{}"))
	return sent(err)
}
