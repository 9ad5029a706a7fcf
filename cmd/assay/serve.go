package main

import (
	"context"
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
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/registry/oci"
	"github.com/assay-dev/assay/registry/rpc"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/badger"
	"github.com/assay-dev/assay/store/fs"
)

// shutdownGrace is how long requests may go on after the server was told to stop.
const shutdownGrace = 30 * time.Second

type serveOptions struct {
	addr, grpcAddr string
	data           string
	readyFile      string
	hosts          []string
	logFormat      string
	logLevel       string
	memoryLimit    int64
	reserve        int64
	unsafeOpen     bool
}

func newServeCommand(g *globals) *cobra.Command {
	var opt serveOptions
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the registry server",
		Long: `Run the registry server on this machine: OCI and REST on --addr, gRPC on
--grpc-addr, everything it keeps in the --data folder.

Nobody has to log in, so it listens on loopback only; any other address is
refused unless --unsafe-no-authentication spells out what that means.

Every flag can also be given in the environment (--grpc-addr as
ASSAY_GRPC_ADDR) or in a YAML file named by --config.`,
		Example: `  assay serve
  assay serve --addr 127.0.0.1:0 --grpc-addr 127.0.0.1:0 --data /var/lib/assay --ready-file /run/assay.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := openServer(cmd.Context(), opt, g.err)
			if err != nil {
				return err
			}
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
	f.Int64Var(&opt.reserve, "reserve", store.DefaultReserve, "bytes of free disk below which the server only reads")
	f.BoolVar(&opt.unsafeOpen, "unsafe-no-authentication", false, "listen beyond loopback although everybody who can connect may do everything")
	return c
}

// A server is every part of a running registry. Fields are in the order in
// which they are opened; close goes the other way.
type server struct {
	opt      serveOptions
	log      *slog.Logger
	db       store.DB
	blobs    store.Blobs
	registry *registry.Registry

	httpListener, grpcListener net.Listener
	http                       *http.Server
	grpc                       *grpc.Server
}

// openServer opens the data directory and the listeners. Nothing is answered
// before run.
func openServer(ctx context.Context, opt serveOptions, logTo io.Writer) (_ *server, err error) {
	s := &server{opt: opt}
	if s.log, err = newLogger(opt, logTo); err != nil {
		return nil, err
	}
	for _, addr := range []string{opt.addr, opt.grpcAddr} {
		if !isLoopback(addr) && !opt.unsafeOpen {
			return nil, remedy(usagef("%s is not a loopback address, and nobody has to log in", addr),
				"listen on 127.0.0.1 behind a proxy that authenticates, or give --unsafe-no-authentication if everybody who can connect may do everything")
		}
	}
	if opt.memoryLimit > 0 && os.Getenv("GOMEMLIMIT") == "" && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(opt.memoryLimit)
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.db, s.blobs, s.registry, err = openData(ctx, opt.data, opt.reserve, s.log); err != nil {
		return nil, err
	}
	if s.httpListener, err = net.Listen("tcp", opt.addr); err != nil {
		return nil, remedy(err, "another program listens there; choose a port with --addr, or 127.0.0.1:0 for any free one")
	}
	if s.grpcListener, err = net.Listen("tcp", opt.grpcAddr); err != nil {
		return nil, remedy(err, "another program listens there; choose a port with --grpc-addr, or 127.0.0.1:0 for any free one")
	}

	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// Everybody is the anonymous user of this machine.
	authenticate := func(*http.Request) (access.Actor, error) { return access.Anonymous(true), nil }
	rpcOptions := rpc.Options{
		Registry:         s.registry,
		AuthenticateHTTP: authenticate,
		AuthenticateRPC:  func(context.Context) (access.Actor, error) { return access.Anonymous(true), nil },
		Log:              s.log,
	}
	s.grpc = grpc.NewServer()
	rpc.Register(s.grpc, rpcOptions)
	gateway, err := rpc.Gateway(ctx, rpcOptions)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", oci.Handler(oci.Options{
		Registry:     s.registry,
		Authenticate: authenticate,
		Log:          s.log,
	}))
	mux.Handle("/api/v1/", gateway)
	mux.Handle("GET /log/", http.StripPrefix("/log/", rpc.Tiles(rpcOptions)))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.registry.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ready\n")
	})
	s.http = &http.Server{
		Handler: oci.Guard(mux, oci.GuardOptions{Hosts: opt.hosts, AnyHost: opt.unsafeOpen}),
		// No limit on a whole request: an upload may take a day. Bodies have
		// progress deadlines instead.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// openData opens what a data directory holds.
func openData(ctx context.Context, dir string, reserve int64, log *slog.Logger) (db store.DB, blobs store.Blobs, r *registry.Registry, err error) {
	defer func() {
		if err == nil {
			return
		}
		if blobs != nil {
			blobs.Close()
		}
		if db != nil {
			db.Close()
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, nil, remedy(err, "choose a folder you may write with --data")
	}
	identity, err := registry.LoadIdentity(filepath.Join(dir, "identity"))
	if err != nil {
		return nil, nil, nil, err
	}
	space := store.NewSpace(dir, reserve)
	if db, err = badger.Open(filepath.Join(dir, "db"), badger.Options{Space: space, Log: log}); err != nil {
		return nil, nil, nil, err
	}
	if blobs, err = fs.Open(filepath.Join(dir, "blobs"), fs.Options{Space: space}); err != nil {
		return db, nil, nil, err
	}
	r, err = registry.Open(ctx, registry.Options{DB: db, Blobs: blobs, Identity: identity, Log: log})
	return db, blobs, r, err
}

// addresses is what --ready-file holds.
type addresses struct {
	HTTP string `json:"http"`
	GRPC string `json:"grpc"`
	PID  int    `json:"pid"`
}

func (s *server) addresses() addresses {
	return addresses{
		HTTP: "http://" + s.httpListener.Addr().String(),
		GRPC: s.grpcListener.Addr().String(),
		PID:  os.Getpid(),
	}
}

func (s *server) announce(w io.Writer) {
	a := s.addresses()
	host := strings.TrimPrefix(a.HTTP, "http://")
	fmt.Fprintf(w, "assay %s serves %s (gRPC on %s), data in %s\n", buildVersion(), a.HTTP, a.GRPC, s.opt.data)
	fmt.Fprintf(w, "try: oras push --plain-http %s/hello:1.0.0 FILE\n", host)
}

// run answers requests until ctx ends, then lets running ones finish.
func (s *server) run(ctx context.Context) error {
	failed := make(chan error, 2)
	go func() { failed <- s.http.Serve(s.httpListener) }()
	go func() { failed <- s.grpc.Serve(s.grpcListener) }()
	maintenance, stopMaintenance := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { s.registry.Maintain(maintenance) })
	defer background.Wait()
	defer stopMaintenance()
	var err error
	if s.opt.readyFile != "" {
		err = writeReadyFile(s.opt.readyFile, s.addresses())
	}
	if err == nil {
		select {
		case err = <-failed:
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
	for _, l := range []net.Listener{s.httpListener, s.grpcListener} {
		if l != nil {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
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
