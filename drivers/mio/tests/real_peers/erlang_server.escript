#!/usr/bin/env escript
%% Erlang's {packet, 2} echo server, on a port that it prints. Ends with its input.
%% Over TLS: escript erlang_server.escript CERTIFICATE KEY
%% A message `drip` makes it answer that connection byte by byte from then on.

main([]) ->
    serve(gen_tcp, inet, []);
main([Certificate, Key]) ->
    {ok, _} = application:ensure_all_started(ssl),
    serve(ssl, ssl, [{certfile, Certificate}, {keyfile, Key}]).

serve(Transport, Settings, More) ->
    Options = [binary, {packet, 2}, {active, false}, {nodelay, true}, {ip, {127, 0, 0, 1}} | More],
    {ok, Listener} = Transport:listen(0, [{backlog, 128} | Options]),
    {ok, {_, Port}} = Settings:sockname(Listener),
    io:format("listening on tcp 127.0.0.1:~b~n", [Port]),
    spawn_link(fun() -> accept(Transport, Settings, Listener) end),
    io:get_line(""),
    halt(0).

accept(gen_tcp, Settings, Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive go -> echo(gen_tcp, Settings, Socket, false) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(gen_tcp, Settings, Listener);
accept(ssl, Settings, Listener) ->
    {ok, Accepted} = ssl:transport_accept(Listener),
    Pid = spawn(fun() ->
        receive go -> ok end,
        {ok, Socket} = ssl:handshake(Accepted, 20000),
        echo(ssl, Settings, Socket, false)
    end),
    ok = ssl:controlling_process(Accepted, Pid),
    Pid ! go,
    accept(ssl, Settings, Listener).

echo(Transport, Settings, Socket, Drip) ->
    case Transport:recv(Socket, 0) of
        {ok, <<"drip">>} ->
            echo(Transport, Settings, Socket, true);
        {ok, Message} when Drip ->
            ok = Settings:setopts(Socket, [{packet, raw}]),
            Frame = <<(byte_size(Message)):16, Message/binary>>,
            [ok = Transport:send(Socket, <<Byte>>) || <<Byte>> <= Frame],
            ok = Settings:setopts(Socket, [{packet, 2}]),
            echo(Transport, Settings, Socket, true);
        {ok, Message} ->
            ok = Transport:send(Socket, Message),
            echo(Transport, Settings, Socket, Drip);
        {error, closed} ->
            Transport:close(Socket)
    end.
