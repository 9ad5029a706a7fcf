package rpc

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
)

// errRequest says that a request is not one that could be answered.
var errRequest = errors.New("request is invalid")

// errorDomain is that of the reasons below (google.rpc.ErrorInfo).
const errorDomain = "assay.dev"

// table is the only place that knows all three languages: the registry's
// errors, gRPC's codes with a reason for programs, and HTTP's statuses where
// they are others than the code's.
var table = []struct {
	err    error
	code   codes.Code
	reason string
	http   int
}{
	{access.ErrUnauthenticated, codes.Unauthenticated, "UNAUTHENTICATED", 0},
	{access.ErrDenied, codes.PermissionDenied, "DENIED", 0},
	{errRequest, codes.InvalidArgument, "REQUEST_INVALID", 0},
	{registry.ErrNameInvalid, codes.InvalidArgument, "NAME_INVALID", 0},
	{registry.ErrTagInvalid, codes.InvalidArgument, "TAG_INVALID", 0},
	{registry.ErrDigestInvalid, codes.InvalidArgument, "DIGEST_INVALID", 0},
	{registry.ErrDigestMismatch, codes.InvalidArgument, "DIGEST_INVALID", 0},
	{registry.ErrSizeInvalid, codes.InvalidArgument, "SIZE_INVALID", 0},
	{registry.ErrRangeInvalid, codes.OutOfRange, "RANGE_INVALID", http.StatusRequestedRangeNotSatisfiable},
	{registry.ErrUploadInvalid, codes.InvalidArgument, "UPLOAD_INVALID", 0},
	{registry.ErrManifestInvalid, codes.InvalidArgument, "MANIFEST_INVALID", 0},
	{registry.ErrManifestTooLarge, codes.InvalidArgument, "MANIFEST_TOO_LARGE", http.StatusRequestEntityTooLarge},
	{registry.ErrDocumentInvalid, codes.InvalidArgument, "DOCUMENT_INVALID", 0},
	{registry.ErrTagImmutable, codes.FailedPrecondition, "TAG_IMMUTABLE", http.StatusConflict},
	{registry.ErrManifestHeld, codes.FailedPrecondition, "MANIFEST_HELD", http.StatusConflict},
	{registry.ErrBlobInUse, codes.FailedPrecondition, "BLOB_IN_USE", http.StatusConflict},
	{registry.ErrManifestBlobUnknown, codes.FailedPrecondition, "MANIFEST_BLOB_UNKNOWN", 0},
	{registry.ErrNameUnknown, codes.NotFound, "NAME_UNKNOWN", 0},
	{registry.ErrManifestUnknown, codes.NotFound, "MANIFEST_UNKNOWN", 0},
	{registry.ErrBlobUnknown, codes.NotFound, "BLOB_UNKNOWN", 0},
	{registry.ErrUploadUnknown, codes.NotFound, "UPLOAD_UNKNOWN", 0},
	{registry.ErrUnknown, codes.NotFound, "UNKNOWN", 0},
	{registry.ErrTooManyUploads, codes.ResourceExhausted, "TOO_MANY_UPLOADS", 0},
	{registry.ErrNoSpace, codes.ResourceExhausted, "NO_SPACE", http.StatusInsufficientStorage},
	{registry.ErrClosed, codes.Unavailable, "SHUTTING_DOWN", 0},
	{context.Canceled, codes.Canceled, "CANCELED", 0},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED", 0},
}

// status is what a caller is told of an error. One that is not in the table is
// ours: its details are for the log, and the caller is told that.
func (s *server) status(ctx context.Context, err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	code, reason, message := codes.Internal, "INTERNAL", "internal error; the server's log has the details under this request id"
	known := false
	for _, row := range table {
		if errors.Is(err, row.err) {
			code, reason, message, known = row.code, row.reason, err.Error(), true
			break
		}
	}
	if !known && s.Registry.Ready(ctx) != nil {
		// It was not this call: nothing works until somebody sees to it.
		code, reason, message = codes.Unavailable, "NOT_READY", "the registry is not ready; its log says why"
	}
	return statusOf(code, reason, message)
}

// statusOf makes a status with a reason for programs.
func statusOf(code codes.Code, reason, message string) *status.Status {
	// Names in a message may be what an HTTP query had in it.
	st := status.New(code, strings.ToValidUTF8(message, "\uFFFD"))
	if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}); err == nil {
		return detailed
	}
	return st
}

// httpStatus is the HTTP status for a gRPC one.
func httpStatus(st *status.Status) int {
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != errorDomain {
			continue
		}
		for _, row := range table {
			if row.reason == info.GetReason() && row.http != 0 {
				return row.http
			}
		}
	}
	return runtime.HTTPStatusFromCode(st.Code())
}
