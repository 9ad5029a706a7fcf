package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"
)

// How large blobs are sent and fetched. A link that breaks costs what was
// under way, and a client that was killed goes on where it stood: an upload at
// the offset the registry has, a download with the pieces it lacks.

const (
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
	code    string // of the specification's error codes, in small letters; "" if there was none
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
	failed := &statusError{status: resp.StatusCode, message: fmt.Sprintf("%s %s: %s", req.Method, req.URL.Path, resp.Status)}
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &answer) == nil && len(answer.Errors) > 0 {
		failed.code = strings.ToLower(answer.Errors[0].Code)
		failed.message += fmt.Sprintf(": %s: %s", failed.code, answer.Errors[0].Message)
	}
	return nil, failed
}

// final reports whether trying again cannot help.
func final(err error) bool {
	var s *statusError
	return errors.As(err, &s) && s.status < 500 && s.status != http.StatusRequestTimeout && s.status != http.StatusTooManyRequests ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// interrupted is err, or why ctx has ended: whoever ended it knows what was
// being done, and wants to know what becomes of it.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return remedy(context.Cause(ctx), "run the command again: it goes on where it stood")
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
var errNoRanges = &statusError{status: http.StatusOK, message: "the registry does not send parts of a blob"}
