package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/assay-dev/assay/proto"
	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/registry/access"
)

// maxBody is more than any request has: the largest is a trust file.
const maxBody = 1 << 20

// Gateway answers HTTP requests below /api/v1/ by calling the services in this
// process. GET /api/v1/openapi.json describes them.
func Gateway(ctx context.Context, opt Options) (http.Handler, error) {
	s := newServer(opt)
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			// "allow": false is the most important thing that is said here,
			// and must not be left out for being the default.
			MarshalOptions: protojson.MarshalOptions{EmitDefaultValues: true},
			// A misspelt field is an error, and no silent default.
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
		}),
		runtime.WithErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
			st := status.Convert(err)
			if len(st.Details()) == 0 && st.Code() == codes.InvalidArgument {
				// The gateway could not make a request of what was sent.
				st = s.status(ctx, fmt.Errorf("%w: %s", errRequest, st.Message()))
			}
			writeStatus(w, httpStatus(st), st)
		}),
		runtime.WithRoutingErrorHandler(routingError),
		// Who is asking was found out from the request itself; no header
		// becomes metadata that something could take for an identity, and no
		// method is another than the one that was sent.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithStrictDeepWildcardMatching(),
	)
	err := errors.Join(
		pb.RegisterModelServiceHandlerServer(ctx, mux, models{server: s}),
		pb.RegisterLineageServiceHandlerServer(ctx, mux, lineage{server: s}),
		pb.RegisterEnvironmentServiceHandlerServer(ctx, mux, environments{server: s}),
		pb.RegisterGateServiceHandlerServer(ctx, mux, gate{server: s}),
		pb.RegisterLogServiceHandlerServer(ctx, mux, transparency{server: s}),
		pb.RegisterTrustServiceHandlerServer(ctx, mux, trust{server: s}),
		pb.RegisterAccessServiceHandlerServer(ctx, mux, accounts{server: s}),
		pb.RegisterMaintenanceServiceHandlerServer(ctx, mux, maintenance{server: s}),
		mux.HandlePath(http.MethodGet, "/api/v1/openapi.json", func(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(proto.OpenAPI)
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("assembling the gateway: %w", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, ok := s.enter(w, r)
		if !ok {
			return
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err == nil && len(query) > 0 && r.Method != http.MethodGet {
			err = fmt.Errorf("%s takes its request from the body", r.Method)
		}
		if err != nil {
			s.fail(w, r, fmt.Errorf("%w: its query string: %w", errRequest, err))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller{actor, query})))
	}), nil
}

// enter finds out who sent a request, before anything else about it is looked
// at, and refuses nobody. If ok is false, it has been answered.
func (s *server) enter(w http.ResponseWriter, r *http.Request) (actor access.Actor, ok bool) {
	id := requestID(r.Header.Get("X-Request-Id"))
	h := w.Header()
	h.Set("X-Request-Id", id)
	h.Set("X-Content-Type-Options", "nosniff")
	// Answers speak of now, to one caller.
	h.Set("Cache-Control", "no-store")
	actor, err := identify(s.AuthenticateHTTP, r)
	actor.RequestID = id
	if err != nil {
		s.fail(w, r, err)
	}
	return actor, err == nil
}

// fail answers a request that comes to no method.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	st := s.status(r.Context(), err)
	level := slog.LevelDebug
	if ours(st.Code()) {
		level = slog.LevelError
	}
	s.Log.Log(r.Context(), level, "rpc", "request", w.Header().Get("X-Request-Id"), "path", r.URL.Path, "code", st.Code(), "error", err)
	writeStatus(w, httpStatus(st), st)
}

// routingError answers what no method is for.
func routingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	path := strings.ToValidUTF8(r.URL.Path, "\uFFFD")
	switch code {
	case http.StatusNotFound:
		writeStatus(w, code, statusOf(codes.NotFound, "NO_SUCH_METHOD", "there is no "+path+"; /api/v1/openapi.json lists what there is"))
	case http.StatusMethodNotAllowed:
		writeStatus(w, code, statusOf(codes.Unimplemented, "NO_SUCH_METHOD", path+" does not take "+r.Method+"; /api/v1/openapi.json lists what it takes"))
	default:
		writeStatus(w, code, statusOf(codes.InvalidArgument, "REQUEST_INVALID", path+": "+http.StatusText(code)))
	}
}

// writeStatus answers with a google.rpc.Status.
func writeStatus(w http.ResponseWriter, code int, st *status.Status) {
	h := w.Header()
	switch code {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Basic realm="assay"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", "5")
	}
	body, err := protojson.Marshal(st.Proto())
	if err != nil {
		// The message is not what a message can be; the code still is.
		body = []byte(`{"code":13,"message":"internal error"}`)
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(body)
}

// checkQuery refuses query parameters that name no field of the request, or one
// that the path has. The gateway would leave them out: a misspelt "at" would
// then be answered as of now.
func checkQuery(ctx context.Context, request protoreflect.MessageDescriptor, query url.Values) error {
	path, _ := runtime.HTTPPathPattern(ctx)
	for name := range query {
		if strings.Contains(path, "{"+name+"}") || strings.Contains(path, "{"+name+"=") {
			return fmt.Errorf("%w: %s is in the path, and cannot be a query parameter", errRequest, name)
		}
		m := request
		for part := range strings.SplitSeq(name, ".") {
			var f protoreflect.FieldDescriptor
			if m != nil {
				if f = m.Fields().ByJSONName(part); f == nil {
					f = m.Fields().ByTextName(part)
				}
			}
			if f == nil {
				return fmt.Errorf("%w: there is no query parameter %q; /api/v1/openapi.json lists what there is", errRequest, name)
			}
			m = f.Message()
		}
	}
	return nil
}
