package oci

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

var (
	errRoute  = errors.New("no such endpoint")
	errMethod = errors.New("method is not supported here")
)

// table is the only place that knows both languages: the registry's errors
// and the distribution specification's codes ("Error Codes", code-1 to
// code-14).
var table = []struct {
	err    error
	status int
	code   string
}{
	{access.ErrUnauthenticated, http.StatusUnauthorized, "UNAUTHORIZED"},
	{access.ErrDenied, http.StatusForbidden, "DENIED"},
	{registry.ErrNameInvalid, http.StatusBadRequest, "NAME_INVALID"},
	{registry.ErrNameUnknown, http.StatusNotFound, "NAME_UNKNOWN"},
	{registry.ErrTagInvalid, http.StatusBadRequest, "MANIFEST_INVALID"},
	{registry.ErrTagImmutable, http.StatusForbidden, "DENIED"},
	{registry.ErrManifestHeld, http.StatusForbidden, "DENIED"},
	{registry.ErrDigestMismatch, http.StatusBadRequest, "DIGEST_INVALID"},
	{registry.ErrDigestInvalid, http.StatusBadRequest, "DIGEST_INVALID"},
	{registry.ErrManifestTooLarge, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID"},
	{registry.ErrManifestBlobUnknown, http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN"},
	{registry.ErrManifestInvalid, http.StatusBadRequest, "MANIFEST_INVALID"},
	{registry.ErrManifestUnknown, http.StatusNotFound, "MANIFEST_UNKNOWN"},
	{registry.ErrBlobUnknown, http.StatusNotFound, "BLOB_UNKNOWN"},
	{registry.ErrBlobInUse, http.StatusForbidden, "DENIED"},
	{registry.ErrUploadUnknown, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN"},
	{registry.ErrRangeInvalid, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID"},
	{registry.ErrSizeInvalid, http.StatusBadRequest, "SIZE_INVALID"},
	{registry.ErrUploadInvalid, http.StatusBadRequest, "BLOB_UPLOAD_INVALID"},
	{registry.ErrTooManyUploads, http.StatusTooManyRequests, "TOOMANYREQUESTS"},
	{registry.ErrNoSpace, http.StatusInsufficientStorage, "DENIED"},
	{registry.ErrClosed, http.StatusServiceUnavailable, "UNAVAILABLE"},
	{store.ErrPoisoned, http.StatusServiceUnavailable, "UNAVAILABLE"},
	{context.Canceled, http.StatusRequestTimeout, "UNKNOWN"}, // the client has gone away
	{errRoute, http.StatusNotFound, "NAME_UNKNOWN"},
	{errMethod, http.StatusMethodNotAllowed, "UNSUPPORTED"},
}

// A sentError came up after the answer had begun: there is nothing left to
// say to the client.
type sentError struct{ error }

func (e sentError) Unwrap() error { return e.error }

// sent marks an error of writing the answer.
func sent(err error) error {
	if err == nil {
		return nil
	}
	return sentError{err}
}

// writeError answers with an error and returns the status. Errors that are
// not in the table are ours: they are logged, and the client is told that.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) int {
	var began sentError
	if errors.As(err, &began) {
		return http.StatusOK
	}
	status, code, message := http.StatusInternalServerError, "UNKNOWN", "internal error; the server's log has the details under this request id"
	for _, row := range table {
		if errors.Is(err, row.err) {
			status, code, message = row.status, row.code, err.Error()
			break
		}
	}
	var detail any
	var missing *registry.MissingBlobs
	if errors.As(err, &missing) {
		detail = missing.Digests
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Del("Etag")
	h.Set("Content-Type", "application/json")
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Basic realm="assay"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", "5")
	}
	// What is left of a body is not read: Go reads a little of it and closes
	// the connection, so that a client that goes on sending hears the answer.
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return status
	}
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	json.NewEncoder(w).Encode(struct {
		Errors []one `json:"errors"`
	}{[]one{{code, message, detail}}})
	return status
}
