package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/oci"
	"github.com/assay-dev/assay/registry/rpc"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/badger"
	"github.com/assay-dev/assay/store/fs"
)

// shutdownGrace is how long requests may go on after the server was told to stop.
const shutdownGrace = 30 * time.Second

// stall is how long a client may send or take nothing.
const stall = time.Minute

// retryOpen is how often a server that found a full disk looks again.
const retryOpen = time.Second

type serveOptions struct {
	addr, grpcAddr string
	data           string
	readyFile      string
	hosts          []string
	logFormat      string
	logLevel       string
	memoryLimit    int64
	reserve        int64

	tlsCert, tlsKey      string
	htpasswd, accessFile string
	unsafeOpen           bool
	unsafeClear          bool
}

func newServeCommand(g *globals) *cobra.Command {
	var opt serveOptions
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the registry server",
		Long: `Run the registry server on this machine: OCI and REST on --addr, gRPC on
--grpc-addr, everything it keeps in the --data folder.

On loopback nobody has to log in, unless --htpasswd is given. Any other
address is refused without TLS and authentication:

  --tls-cert, --tls-key   PEM files; changed ones are loaded again
  --htpasswd              users, "NAME:BCRYPT" a line ('assay access passwd')
  --access-file           what they may do; what is not granted is denied:

      version: 1
      grants:
      - users: [alice, ci]
        role: pusher              # or reader, auditor, operator
        repositories: [credit/**]
      - users: ["*"]              # whoever has logged in
        role: reader
        repositories: ["**"]

Programs log in with tokens, which 'assay access token create' makes.

Every flag can also be given in the environment (--grpc-addr as
ASSAY_GRPC_ADDR) or in a YAML file named by --config.`,
		Example: `  assay serve
  assay serve --addr :443 --grpc-addr :5001 --tls-cert tls.crt --tls-key tls.key --htpasswd users.htpasswd --access-file access.yaml
  assay serve --addr 127.0.0.1:0 --grpc-addr 127.0.0.1:0 --data /var/lib/assay --ready-file /run/assay.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := openServer(cmd.Context(), opt, g.err)
			if err != nil {
				return err
			}
			spareProcessors()
			if !g.quiet {
				s.announce(g.err)
			}
			return s.run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&opt.addr, "addr", "127.0.0.1:5000", "where to serve OCI, REST and pages over HTTP/1.1; port 0 picks a free one")
	f.StringVar(&opt.grpcAddr, "grpc-addr", "127.0.0.1:5001", "where to serve gRPC; port 0 picks a free one")
	f.StringVar(&opt.data, "data", "./assay-data", "the folder that holds everything the server keeps")
	f.StringVar(&opt.readyFile, "ready-file", "", "write the addresses as JSON to this file once the server answers")
	f.StringSliceVar(&opt.hosts, "host", nil, "further host names by which clients may call the server")
	f.StringVar(&opt.logFormat, "log-format", "text", "text or json")
	f.StringVar(&opt.logLevel, "log-level", "info", "debug, info, warn or error")
	f.Int64Var(&opt.memoryLimit, "memory-limit", 1<<30, "soft limit of the runtime's memory in bytes; 0 leaves it to GOMEMLIMIT")
	f.Int64Var(&opt.reserve, "reserve", 0, "bytes of free disk below which the server only reads; 0 is 256 MiB, or a twentieth of a disk smaller than 5 GiB")
	f.StringVar(&opt.tlsCert, "tls-cert", "", "PEM file with the server's certificate and those it rests on")
	f.StringVar(&opt.tlsKey, "tls-key", "", "PEM file with the certificate's private key")
	f.StringVar(&opt.htpasswd, "htpasswd", "", "file with the users and their passwords by bcrypt; then everybody has to log in")
	f.StringVar(&opt.accessFile, "access-file", "", "YAML file that says what users may do")
	f.BoolVar(&opt.unsafeClear, "unsafe-no-tls", false, "listen beyond loopback with passwords in clear, because a proxy in front does TLS")
	f.BoolVar(&opt.unsafeOpen, "unsafe-no-authentication", false, "listen beyond loopback although everybody who can connect may do everything")
	return c
}

// processorsPerCore is how many goroutines may be running, or be in a system
// call that the scheduler has not noticed, for each core.
const processorsPerCore = 4

// spareProcessors gives the scheduler more processors than there are cores. A
// write past the page cache stays in the kernel for milliseconds, and keeps its
// processor until the scheduler's monitor takes it away, which can be 10 ms
// later: with one for each core, cores stood idle for an eighth of four pushes
// at once. (Badger's documentation advises the same, for the same reason.)
//
// Whoever sets GOMAXPROCS has the last word. It is called when everything that
// counts cores has done so. From then on the runtime does not follow a limit of
// the container's that changes (see [runtime.GOMAXPROCS]).
func spareProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(processorsPerCore * runtime.GOMAXPROCS(0))
	}
}

// A server is every part of a running registry. Fields are in the order in
// which they are opened; close goes the other way.
type server struct {
	opt      serveOptions
	log      *slog.Logger
	security security

	httpListener, grpcListener net.Listener
	http                       *http.Server
	handler                    atomic.Pointer[http.Handler]
	waiting                    atomic.Pointer[error] // why the data cannot be opened yet
	failed                     chan error            // of what serves

	*stored
	grpc *grpc.Server
}

// openServer opens the listeners and then the data directory. Until that is
// open, which may take its time, the server says that it is recovering.
func openServer(ctx context.Context, opt serveOptions, logTo io.Writer) (_ *server, err error) {
	s := &server{opt: opt, failed: make(chan error, 2)}
	if s.log, err = newLogger(opt, logTo); err != nil {
		return nil, err
	}
	if err := opt.check(); err != nil {
		return nil, err
	}
	if s.security, err = openSecurity(opt, s.log); err != nil {
		return nil, err
	}
	if opt.memoryLimit > 0 && os.Getenv("GOMEMLIMIT") == "" && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(opt.memoryLimit)
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.httpListener, err = net.Listen("tcp", opt.addr); err != nil {
		return nil, remedy(err, "another program listens there; choose a port with --addr, or 127.0.0.1:0 for any free one")
	}
	if s.grpcListener, err = net.Listen("tcp", opt.grpcAddr); err != nil {
		return nil, remedy(err, "another program listens there; choose a port with --grpc-addr, or 127.0.0.1:0 for any free one")
	}
	s.serveHTTP()
	for s.stored == nil {
		s.stored, err = openData(ctx, opt.data, opt.reserve, s.log)
		if errors.Is(err, store.ErrNoSpace) {
			// Whoever makes room need not know that there is a server to start.
			if s.waiting.Swap(&err) == nil {
				s.log.Error("waiting for space on the disk", "error", err)
			}
			select {
			case <-time.After(retryOpen):
				continue
			case <-ctx.Done():
			}
		}
		if err != nil {
			return nil, err
		}
	}
	s.security.know(s.registry)
	handler, err := s.assemble(ctx, newMetrics(s.stored))
	if err != nil {
		return nil, err
	}
	s.handler.Store(&handler)
	go func() { s.failed <- s.grpc.Serve(s.grpcListener) }()
	return s, nil
}

// serveHTTP begins to answer requests: as long as there is no handler, by
// saying that there will be one.
func (s *server) serveHTTP() {
	recovering := http.NewServeMux()
	recovering.HandleFunc("GET /healthz", healthz)
	recovering.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		if err := s.waiting.Load(); err != nil {
			http.Error(w, "recovering: "+(*err).Error(), http.StatusInsufficientStorage)
			return
		}
		http.Error(w, "recovering: the data folder is being opened", http.StatusServiceUnavailable)
	})
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if h := s.handler.Load(); h != nil {
				(*h).ServeHTTP(w, r)
				return
			}
			recovering.ServeHTTP(w, r)
		}),
		// No limit on a whole request: an upload may take a day. Bodies have
		// progress deadlines instead.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	l := s.httpListener
	if s.security.tls != nil {
		// HTTP/1.1 only: HTTP/2's windows starve large uploads.
		l = tls.NewListener(l, s.security.config("http/1.1"))
	}
	go func() { s.failed <- s.http.Serve(l) }()
}

func healthz(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }

// assemble makes what answers requests, over both transports.
func (s *server) assemble(ctx context.Context, m *metrics) (http.Handler, error) {
	rpcOptions := rpc.Options{
		Registry:         s.registry,
		AuthenticateHTTP: s.security.http,
		AuthenticateRPC:  s.security.rpc,
		Observe:          m.observeRPC,
		Log:              s.log,
	}
	var grpcOptions []grpc.ServerOption
	if s.security.tls != nil {
		grpcOptions = append(grpcOptions, grpc.Creds(credentials.NewTLS(s.security.config("h2"))))
	}
	s.grpc = grpc.NewServer(grpcOptions...)
	rpc.Register(s.grpc, rpcOptions)
	gateway, err := rpc.Gateway(ctx, rpcOptions)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", oci.Handler(oci.Options{
		Registry:     s.registry,
		Authenticate: s.security.http,
		Observe:      m.observeOCI,
		Log:          s.log,
	}))
	mux.Handle("/api/v1/", gateway)
	mux.Handle("/api/v1/backup", rpc.Backup(rpcOptions))
	mux.Handle("/log/", http.StripPrefix("/log/", rpc.Tiles(rpcOptions)))
	mux.Handle("GET /metrics", s.security.audited(promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})))
	// Probes do not log in, and are told nothing but what they ask.
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		err := s.registry.Ready(r.Context())
		switch {
		case err == nil:
			io.WriteString(w, "ready\n")
		case errors.Is(err, registry.ErrNoSpace):
			http.Error(w, "read-only: "+err.Error(), http.StatusServiceUnavailable)
		case errors.Is(err, store.ErrPoisoned):
			http.Error(w, "poisoned: "+err.Error(), http.StatusServiceUnavailable)
		default:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	// A page of somebody else's can make a browser call a server that trusts
	// whoever is on this machine, under any name; one that asks for a password
	// may have any name.
	return oci.Guard(oci.Patience(mux, stall), oci.GuardOptions{Hosts: s.opt.hosts, AnyHost: s.opt.unsafeOpen || s.security.authenticator != nil}), nil
}

// stored is an open data folder. Fields are in the order in which they are
// opened; close goes the other way.
type stored struct {
	space    *store.Space
	db       store.DB
	blobs    store.Blobs
	registry *registry.Registry
}

func openData(ctx context.Context, dir string, reserve int64, log *slog.Logger) (_ *stored, err error) {
	s := &stored{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, remedy(err, "choose a folder you may write with --data")
	}
	if s.space, err = store.NewSpace(dir, reserve); err != nil {
		return nil, err
	}
	identity, err := registry.LoadIdentity(filepath.Join(dir, "identity"))
	if err != nil {
		return nil, err
	}
	if s.db, err = badger.Open(filepath.Join(dir, "db"), badger.Options{Space: s.space, Log: log}); err != nil {
		s.db = nil // and no interface with a nil pointer in it
		return nil, err
	}
	if s.blobs, err = fs.Open(filepath.Join(dir, "blobs"), fs.Options{Space: s.space}); err != nil {
		s.blobs = nil
		return nil, err
	}
	s.registry, err = registry.Open(ctx, registry.Options{DB: s.db, Blobs: s.blobs, Identity: identity, Log: log})
	return s, err
}

func (s *stored) close() error {
	var errs []error
	if s.registry != nil {
		errs = append(errs, s.registry.Close())
	}
	if s.blobs != nil {
		errs = append(errs, s.blobs.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

// addresses is what --ready-file holds.
type addresses struct {
	HTTP string `json:"http"`
	GRPC string `json:"grpc"`
	PID  int    `json:"pid"`
}

func (s *server) addresses() addresses {
	scheme := "http://"
	if s.security.tls != nil {
		scheme = "https://"
	}
	return addresses{
		HTTP: scheme + s.httpListener.Addr().String(),
		GRPC: s.grpcListener.Addr().String(),
		PID:  os.Getpid(),
	}
}

func (s *server) announce(w io.Writer) {
	a := s.addresses()
	_, host, _ := strings.Cut(a.HTTP, "://")
	fmt.Fprintf(w, "assay %s serves %s (gRPC on %s), data in %s\n", buildVersion(), a.HTTP, a.GRPC, s.opt.data)
	switch {
	case s.security.authenticator != nil:
		fmt.Fprintf(w, "everybody has to log in; try: oras login %s\n", host)
	case s.security.tls != nil:
		fmt.Fprintf(w, "try: oras push %s/hello:1.0.0 FILE\n", host)
	default:
		fmt.Fprintf(w, "try: oras push --plain-http %s/hello:1.0.0 FILE\n", host)
	}
}

// run answers requests until ctx ends, then lets running ones finish.
func (s *server) run(ctx context.Context) error {
	maintenance, stopMaintenance := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { s.registry.Maintain(maintenance) })
	background.Go(func() { s.registry.ReviewTrust(maintenance) })
	defer background.Wait()
	defer stopMaintenance()
	var err error
	if s.opt.readyFile != "" {
		err = writeReadyFile(s.opt.readyFile, s.addresses())
	}
	if err == nil {
		select {
		case err = <-s.failed:
		case <-ctx.Done():
			s.log.Info("stopping: waiting for running requests", "at most", shutdownGrace)
		}
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	stopped := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(stopped) }()
	if e := s.http.Shutdown(drain); e != nil {
		s.log.Warn("cutting off requests that are still running; uploads can be resumed", "error", e)
		s.http.Close()
	}
	select {
	case <-stopped:
	case <-drain.Done():
		s.grpc.Stop()
	}
	if s.opt.readyFile != "" {
		os.Remove(s.opt.readyFile)
	}
	return errors.Join(err, s.close())
}

func (s *server) close() error {
	var errs []error
	if s.http != nil {
		s.http.Close()
	}
	for _, l := range []net.Listener{s.httpListener, s.grpcListener} {
		if l != nil {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if s.stored != nil {
		errs = append(errs, s.stored.close())
	}
	return errors.Join(errs...)
}

// writeReadyFile writes a whole file or none, since somebody waits for it.
func writeReadyFile(path string, a addresses) error {
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	partial := path + ".partial"
	if err := os.WriteFile(partial, append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(partial, path)
}

func newLogger(opt serveOptions, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(opt.logLevel)); err != nil {
		return nil, usagef("--log-level %q is unknown: use debug, info, warn or error", opt.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch opt.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, usagef("--log-format %q is unknown: use text or json", opt.logFormat)
}
