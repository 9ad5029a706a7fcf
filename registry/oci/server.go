// Package oci speaks the OCI distribution specification (v1.1, and what is
// new on its main branch) over HTTP for a [registry.Registry].
//
// Handlers return errors; errors.go is the one place that turns them into
// status codes. Requests have progress deadlines ([Patience]) instead of limits
// on the whole: an upload may take a day, as long as bytes keep coming.
package oci

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
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

// routes are the specification's, with the methods each takes, read in this
// order. Repository names have slashes in them, so paths are read from the
// right: suffix is what follows the name, and a pattern that ends in
// <reference> has one more word after it.
var routes = []struct {
	pattern, suffix string
	methods         map[string]func(*server, *call) error
}{
	{"/v2/", "", methods{"GET": (*server).ping, "HEAD": (*server).ping}},
	{"/v2/_catalog", "", methods{"GET": (*server).catalog}},
	{"/v2/<name>/tags/list", "/tags/list", methods{"GET": (*server).tags}},
	{"/v2/<name>/blobs/uploads/", "/blobs/uploads", methods{"POST": (*server).startUpload}},
	{"/v2/<name>/blobs/uploads/<reference>", "/blobs/uploads", methods{
		"GET": (*server).statUpload, "PATCH": (*server).patchUpload, "PUT": (*server).putUpload, "DELETE": (*server).cancelUpload}},
	{"/v2/<name>/blobs/<reference>", "/blobs", methods{"GET": (*server).getBlob, "HEAD": (*server).getBlob, "DELETE": (*server).deleteBlob}},
	{"/v2/<name>/manifests/<reference>", "/manifests", methods{
		"GET": (*server).getManifest, "HEAD": (*server).getManifest, "PUT": (*server).putManifest, "DELETE": (*server).deleteManifest}},
	{"/v2/<name>/referrers/<reference>", "/referrers", methods{"GET": (*server).referrers}},
}

type methods = map[string]func(*server, *call) error

// Routes lists what Handler answers, as "METHOD /v2/<name>/…", in order.
func Routes() []string {
	var list []string
	for _, r := range routes {
		for _, m := range slices.Sorted(maps.Keys(r.methods)) {
			list = append(list, m+" "+r.pattern)
		}
	}
	return list
}

// route finds the handler for a path.
func route(method, path string) (h func(*server, *call) error, pattern, repo, ref string) {
	name, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return nil, "", "", ""
	}
	for _, r := range routes {
		repo, ref := "", ""
		switch {
		case r.suffix == "":
			ok = path == r.pattern
		case strings.HasSuffix(r.pattern, "<reference>"):
			var dir string
			dir, ref, ok = cutLast(name)
			if ok = ok && ref != ""; ok {
				repo, ok = strings.CutSuffix(dir, r.suffix)
			}
		default:
			repo, ok = strings.CutSuffix(strings.TrimSuffix(name, "/"), r.suffix)
		}
		if !ok {
			continue
		}
		if h = r.methods[method]; h == nil {
			h = func(*server, *call) error { return errMethod }
		}
		return h, r.pattern, repo, ref
	}
	return nil, "", "", ""
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
	h, pattern, repo, ref := route(r.Method, r.URL.Path)
	c := &call{Request: r, w: w, repo: repo, ref: ref}
	c.seen = Observation{Route: pattern, Method: r.Method}
	var err error
	// Who is asking is known, and refused, before the body is read and before
	// anything is told of what there is.
	if c.actor, err = s.Authenticate(r); err == nil {
		c.actor.RequestID = id
		if c.actor.ID == "" {
			err = fmt.Errorf("%w: log in", access.ErrUnauthenticated)
		} else if h == nil {
			err = errRoute
		} else {
			err = h(s, c)
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
	if !s.Log.Enabled(r.Context(), level) {
		return // reads are not logged as a rule, and what follows would be made for nothing
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
