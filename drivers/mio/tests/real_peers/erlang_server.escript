#!/usr/bin/env escript
%% Erlang's {packet, 2} echo server, on a port that it prints. Ends with its input.
%% A message `drip` makes it answer that connection byte by byte from then on.

main([]) ->
    Options = [binary, {packet, 2}, {active, false}, {nodelay, true}, {ip, {127, 0, 0, 1}}],
    {ok, Listener} = gen_tcp:listen(0, [{backlog, 128} | Options]),
    {ok, Port} = inet:port(Listener),
    io:format("listening on tcp 127.0.0.1:~b~n", [Port]),
    spawn_link(fun() -> accept(Listener) end),
    io:get_line(""),
    halt(0).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> receive go -> echo(Socket, false) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener).

echo(Socket, Drip) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, <<"drip">>} ->
            echo(Socket, true);
        {ok, Message} when Drip ->
            ok = inet:setopts(Socket, [{packet, raw}]),
            Frame = <<(byte_size(Message)):16, Message/binary>>,
            [ok = gen_tcp:send(Socket, <<Byte>>) || <<Byte>> <= Frame],
            ok = inet:setopts(Socket, [{packet, 2}]),
            echo(Socket, true);
        {ok, Message} ->
            ok = gen_tcp:send(Socket, Message),
            echo(Socket, Drip);
        {error, closed} ->
            gen_tcp:close(Socket)
    end.
