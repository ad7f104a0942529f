-- A dissector for Wireshark: the messages of cubenet, over TCP and over UDP.
--
--   wireshark -X lua_script:docs/cubenet.lua FILE
--   tshark -X lua_script:docs/cubenet.lua -r FILE -Y cubenet
--
-- It takes the ports in its preferences for cubenet's, 7000 at first; with "Decode As", any other.

local cubenet = Proto("cubenet", "cubenet messages")

local length = ProtoField.uint16("cubenet.length", "Length", base.DEC, nil, nil,
    "Bytes of the message, as the frame's header says")
local message = ProtoField.bytes("cubenet.message", "Message")
local closes = ProtoField.none("cubenet.close", "Close",
    "An empty datagram closes the connection")
cubenet.fields = { length, message, closes }

local empty = ProtoExpert.new("cubenet.empty", "An empty message",
    expert.group.COMMENTS_GROUP, expert.severity.CHAT)
cubenet.experts = { empty }

cubenet.prefs.ports = Pref.range("Ports", "7000", "TCP and UDP ports of cubenet", 65535)

local HEADER = 2

local function say(info, count, bytes)
    info.cols.protocol = "cubenet"
    info.cols.info:append(string.format(" [%d message%s, %d bytes]", count,
        count == 1 and "" or "s", bytes))
end

local function frame_length(buffer, _, offset)
    return HEADER + buffer(offset, HEADER):uint()
end

-- One frame, whole: Wireshark has put it together.
local function dissect_frame(buffer, info, tree)
    local bytes = buffer:len() - HEADER
    local item = tree:add(cubenet, buffer(), string.format("cubenet message, %d bytes", bytes))
    item:add(length, buffer(0, HEADER))
    if bytes > 0 then
        item:add(message, buffer(HEADER))
    else
        item:add_proto_expert_info(empty)
    end
    say(info, 1, bytes)
    return buffer:len()
end

local function dissect_datagram(buffer, info, tree)
    local bytes = buffer:len()
    local item = tree:add(cubenet, buffer(), string.format("cubenet message, %d bytes", bytes))
    item:add(message, buffer())
    say(info, 1, bytes)
    return bytes
end

local TCP = 6
local transport = Field.new("ip.proto")
local transport_v6 = Field.new("ipv6.nxt")

function cubenet.dissector(buffer, info, tree)
    local proto = transport() or transport_v6()
    if proto and proto.value == TCP then
        return dissect_tcp_pdus(buffer, tree, HEADER, frame_length, dissect_frame)
    end
    return dissect_datagram(buffer, info, tree)
end

-- An empty datagram has no payload, so no dissector is called for it: it is marked afterwards.
local marks = Proto("cubenet_close", "cubenet closes")
local udp_length, udp_source, udp_destination =
    Field.new("udp.length"), Field.new("udp.srcport"), Field.new("udp.dstport")
local UDP_HEADER = 8

local function is_ours(port)
    for range in tostring(cubenet.prefs.ports):gmatch("[^,]+") do
        local first, last = range:match("^%s*(%d+)%s*%-?%s*(%d*)%s*$")
        first, last = tonumber(first), tonumber(last)
        if first and port >= first and port <= (last or first) then
            return true
        end
    end
    return false
end

function marks.dissector(_, info, tree)
    local bytes = udp_length()
    if not bytes or bytes.value ~= UDP_HEADER then
        return
    end
    if is_ours(udp_source().value) or is_ours(udp_destination().value) then
        tree:add(cubenet, "cubenet close"):add(closes)
        info.cols.protocol = "cubenet"
        info.cols.info:append(" [close]")
    end
end

register_postdissector(marks)

local registered

local function register()
    local tcp, udp = DissectorTable.get("tcp.port"), DissectorTable.get("udp.port")
    if registered then
        tcp:remove(registered, cubenet)
        udp:remove(registered, cubenet)
    end
    registered = cubenet.prefs.ports
    tcp:add(registered, cubenet)
    udp:add(registered, cubenet)
end

function cubenet.prefs_changed()
    register()
end

register()
